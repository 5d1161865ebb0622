"""Ways of drafting knowledge texts, run over held-out users and items: how fast each is, and what it writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from statistics import median

import numpy as np

from genrec.knowledge.decoder import GREEDY, Generated, TextRequest, Verification
from genrec.knowledge.drafter import Drafter, PoolDrafter, PromptLookupDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.reporting.timing import in_turn, median_ratio
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.folder import training_histories
from genrec_builders.knowledge.texts import item_texts, split_texts, user_texts

BASELINE, RESD, DARE = "autoregressive", "global pool, greedy (ReSD)", "group pools, relaxed (DARE)"
Way = tuple[Drafter | None, Verification]
Cell = tuple[str, int]  # name of a way, batch size


class Of(str, Enum):
    """Whose texts are written."""

    both, users, items = "both", "users", "items"


@dataclass(frozen=True)
class Run:
    """A way at a batch size, over all requests.

    tokens_per_s, outside_model: speed, and the share of the time outside the language model; medians over the rounds.
    rates: tokens per second of every round. drafted, accepted: draft tokens. texts: the tokens of each request's.
    """

    batch_size: int
    tokens_per_s: float
    tokens_per_step: float
    outside_model: float
    drafted: int
    accepted: int
    accepted_by_depth: dict[int, int]
    drafted_by_depth: dict[int, int]
    rates: list[float]
    texts: list[list[int]]

    def speed_up(self, other: Run) -> float:
        """How many times as fast as `other` it is, measured in the same rounds."""
        return median_ratio(self.rates, other.rates)


def ways(model: KnowledgeModel) -> dict[str, Way]:
    """What is compared, by name."""
    pools = model.pools
    return {
        BASELINE: (None, GREEDY),
        "prompt lookup, greedy": (PromptLookupDrafter(), GREEDY),
        RESD: (PoolDrafter(pools, grouped=False), GREEDY),
        "group pools, greedy": (PoolDrafter(pools), GREEDY),
        DARE: (PoolDrafter(pools), RELAXED),
    }


def ablations(model: KnowledgeModel) -> dict[str, Way]:
    """DARE with one thing changed."""
    pools = model.pools
    changed: dict[str, Way] = {"one global pool": (PoolDrafter(pools, grouped=False), RELAXED)}
    changed |= {
        f"k {k}, threshold {threshold}": (PoolDrafter(pools), Verification(k, threshold))
        for k, threshold in ((2, 0.05), (2, 0.2), (2, 0.3), (3, 0.1))
    }
    changed |= {f"trees of {nodes}": (PoolDrafter(pools, max_nodes=nodes), RELAXED) for nodes in (4, 8, 32, 64)}
    return changed | {
        f"share at least {share}": (PoolDrafter(pools, min_share=share), RELAXED) for share in (0.0, 0.05, 0.2, 0.4)
    }


def held_out_requests(
    model: KnowledgeModel, data: Path, entities: int, of: Of = Of.both, seed: int = 0
) -> list[TextRequest]:
    """Of users and items that the language model was not trained on, half of each or `of` one kind only."""
    dataset = read_dataset(data)
    histories = training_histories(dataset)
    draw = np.random.default_rng(seed)
    requests = []
    kinds = [kind for kind in (Of.users, Of.items) if of in (kind, Of.both)]
    for kind in kinds:
        # Who is held out does not depend on how hard the texts are.
        texts = user_texts(dataset) if kind is Of.users else item_texts(dataset)
        held_out = [text.entity for text in split_texts(texts)[1]]
        for entity in draw.permutation(held_out)[: entities // len(kinds)].tolist():
            requests.append(model.user_request(histories[entity]) if kind is Of.users else model.item_request(entity))
    return requests


def measure(model: KnowledgeModel, way: Way, batch_size: int, requests: Sequence[TextRequest]) -> Run:
    """One round over all requests."""
    drafter, verification = way
    session = model.decoder(verification, batch_size, drafter=drafter).session()
    for request in requests:
        session.submit(request)
    done: dict[int, Generated] = {}
    began = time.perf_counter()
    while session.pending:
        done |= {step.index: step.finished for step in session.step() if step.finished}
    seconds = time.perf_counter() - began
    statistics = session.statistics
    rate = statistics.tokens / seconds
    return Run(
        batch_size=batch_size,
        tokens_per_s=rate,
        tokens_per_step=statistics.tokens_per_step,
        outside_model=1 - statistics.llm_s / seconds,
        drafted=sum(statistics.drafted_by_depth.values()),
        accepted=sum(statistics.accepted_by_depth.values()),
        accepted_by_depth=statistics.accepted_by_depth,
        drafted_by_depth=statistics.drafted_by_depth,
        rates=[rate],
        texts=[done[index].tokens.tolist() for index in range(len(requests))],
    )


def in_rounds(
    model: KnowledgeModel, cells: Mapping[Cell, Way], requests: Sequence[TextRequest], rounds: int
) -> dict[Cell, Run]:
    """`measure` of every cell, a way and its batch size, in turn, round by round: a machine that slows down slows all.

    Counts and texts are the same in all rounds.
    """
    calls = {cell: (way, cell[1]) for cell, way in cells.items()}
    runs = in_turn(calls, rounds, lambda call: measure(model, *call, requests), warm_up=0)
    return {
        cell: replace(
            found[0],
            tokens_per_s=median(run.tokens_per_s for run in found),
            outside_model=median(run.outside_model for run in found),
            rates=[run.tokens_per_s for run in found],
        )
        for cell, found in runs.items()
    }


def run_ways(
    model: KnowledgeModel, requests: Sequence[TextRequest], sizes: Sequence[int], rounds: int
) -> dict[str, list[Run]]:
    """Every way of `ways` at every batch size of `sizes`, in turn: by name, a run for each size."""
    compared = ways(model)
    measure(model, compared[DARE], sizes[-1], requests[: sizes[-1]])  # warm-up
    cells = in_rounds(model, {(name, size): compared[name] for size in sizes for name in compared}, requests, rounds)
    return {name: [cells[name, size] for size in sizes] for name in compared}


def run_ablations(
    model: KnowledgeModel, requests: Sequence[TextRequest], dare_size: int, baseline_size: int, rounds: int
) -> dict[str, Run]:
    """DARE and its `ablations` at `dare_size` at once, and the baseline again at `baseline_size`, in turn: by name."""
    compared = ways(model)
    changed = {(name, dare_size): way for name, way in ({DARE: compared[DARE]} | ablations(model)).items()}
    changed[BASELINE, baseline_size] = compared[BASELINE]
    return {name: run for (name, _), run in in_rounds(model, changed, requests, rounds).items()}


def best_runs(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """By name of a way, its fastest run."""
    return {name: max(found, key=lambda run: run.tokens_per_s) for name, found in runs.items()}
