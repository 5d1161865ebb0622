"""Ways of drafting knowledge texts, run over held-out users and items: how fast each is, and what it writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from genrec.knowledge.drafter import Drafter, PoolDrafter, PromptLookupDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.knowledge.pools import GLOBAL, Pools
from genrec.knowledge.texts import GREEDY, Generated, TextRequest, Verification
from genrec.reporting.timing import in_turn, median_ratio
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.folder import training_histories
from genrec_builders.knowledge.texts import item_texts, split_texts, user_texts
from perf.knowledge.suffix_decoding import SuffixDecodingDrafter

BASELINE, RESD, DARE = "one token at a time", "global pool, greedy (ReSD)", "group pools, relaxed (DARE)"
SUFFIX, OURS = "SuffixDecoding, alpha {}", "all sources, budget, relaxed (ours)"
TEXTS_ALONE = 32  # at most so many times the batch size are written, so that one text at a time takes no hours


class Way(NamedTuple):
    """How texts are decoded. fixed: all that is drafted is verified, without a budget."""

    drafter: Drafter | None
    verification: Verification
    fixed: bool = True


Cell = tuple[str, int]  # name of a way, batch size
# Trees as before the budget, with the settings that were best for them.
_TREES: dict[str, Any] = {"max_nodes": 16, "max_depth": 12, "min_share": 0.1, "discount": 0.3, "own_weight": 0.0}


class Of(str, Enum):
    """Whose texts are written."""

    both, users, items = "both", "users", "items"


@dataclass(frozen=True)
class Run:
    """A way at a batch size, over all requests, or an even part of them where few are written at once.

    tokens_per_s, outside_model: speed, and the share of the time outside the language model; medians over the rounds.
    rates: tokens per second of every round. drafted, accepted: draft tokens. text_steps: passes, once for each
    text. texts: the tokens of each request's.
    """

    batch_size: int
    tokens_per_s: float
    tokens_per_step: float
    outside_model: float
    drafted: int
    text_steps: int
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
        BASELINE: Way(None, GREEDY),
        "prompt lookup, greedy": Way(PromptLookupDrafter(), GREEDY),
        RESD: Way(PoolDrafter(pools, group_weight=0.0, **_TREES), GREEDY),
        **{SUFFIX.format(factor): Way(SuffixDecodingDrafter(pools, factor), GREEDY) for factor in (1, 2)},
        DARE: Way(PoolDrafter(pools, group_weight=1e9, **_TREES), RELAXED),
        "all sources, budget, greedy": Way(PoolDrafter(pools), GREEDY, fixed=False),
        OURS: Way(PoolDrafter(pools), RELAXED, fixed=False),
    }


def ablations(model: KnowledgeModel) -> dict[str, Way]:
    """Ours with one thing changed."""
    pools = model.pools
    changed: dict[str, dict[str, Any]] = {
        "without the text itself": {"own_weight": 0.0},
        "without group pools": {"group_weight": 0.0},
        "group pools first": {"group_weight": 1e9},
        "branches up to 12": {"max_depth": 12},
        "discount 0.3": {"discount": 0.3},
    }
    found = {name: Way(PoolDrafter(pools, **options), RELAXED, fixed=False) for name, options in changed.items()}
    found["all of trees of 64, without the budget"] = Way(PoolDrafter(pools), RELAXED)
    found["all of trees of 16, without the budget"] = Way(PoolDrafter(pools, max_nodes=16), RELAXED)
    return found


def foreign(model: KnowledgeModel) -> dict[str, Way]:
    """Ours with pools that are of no use, next to the baseline."""
    everything = model.pools.by_group[GLOBAL]
    size, draw = everything.tokens, np.random.default_rng(0)
    contents: dict[str, list[np.ndarray]] = {
        "pools empty": [],
        "pools of random tokens": np.split(draw.integers(0, everything.vocabulary_size, size), range(80, size, 80)),
        "pools of shuffled texts": [draw.permutation(text) for text in everything.texts()],
    }
    found = {BASELINE: Way(None, GREEDY)}
    for name, texts in contents.items():
        pools = Pools(everything.vocabulary_size)
        pools.add(texts, [GLOBAL] * len(texts))
        found[name] = Way(PoolDrafter(pools), RELAXED, fixed=False)
    return found


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
    decoder = model.decoder(way.verification, batch_size, drafter=way.drafter, fixed=way.fixed)
    session = decoder.session()
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
        text_steps=statistics.text_steps,
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

    Counts and texts are the same in all rounds. Of many requests small batches write every second, third or so on.
    """
    some = {size: requests[:: -(-len(requests) // (TEXTS_ALONE * size))] for _, size in cells}
    calls = {cell: (way, cell[1]) for cell, way in cells.items()}
    runs = in_turn(calls, rounds, lambda call: measure(model, *call, some[call[1]]), warm_up=0)
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
    model: KnowledgeModel,
    compared: Mapping[str, Way],
    requests: Sequence[TextRequest],
    sizes: Sequence[int],
    rounds: int,
) -> dict[str, list[Run]]:
    """Every way of `compared` at every batch size of `sizes`, in turn: by name, a run for each size."""
    measure(model, compared[BASELINE], sizes[-1], requests[: sizes[-1]])  # warm-up
    cells = in_rounds(model, {(name, size): compared[name] for size in sizes for name in compared}, requests, rounds)
    return {name: [cells[name, size] for size in sizes] for name in compared}


def run_ablations(
    model: KnowledgeModel, requests: Sequence[TextRequest], size: int, baseline_size: int, rounds: int
) -> dict[str, Run]:
    """Ours and its `ablations` at `size` at once, and the baseline again at `baseline_size`, in turn: by name."""
    compared = ways(model)
    changed = {(name, size): way for name, way in ({OURS: compared[OURS]} | ablations(model)).items()}
    changed[BASELINE, baseline_size] = compared[BASELINE]
    return {name: run for (name, _), run in in_rounds(model, changed, requests, rounds).items()}


def best_runs(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """By name of a way, its fastest run."""
    return {name: max(found, key=lambda run: run.tokens_per_s) for name, found in runs.items()}
