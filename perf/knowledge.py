"""How much faster speculative decoding writes knowledge texts, against its baselines in the same run.

python perf/knowledge.py build/knowledge build/shop build/knowledge-bench

Writes the texts of held-out users and items of the demo shop: none of them is in the pools. Every way of drafting runs
at every batch size, in turn; each is then judged at its own best. Prints tables and writes results.json and speed.svg.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from builders.dataset import read_dataset
from builders.knowledge.folder import training_histories
from builders.knowledge.texts import item_texts, split_texts, user_texts
from builders.machine import this_commit, this_machine
from genrec.knowledge.decoder import GREEDY, Generated, Request, Verification
from genrec.knowledge.drafter import Drafter, PoolDrafter, PromptLookupDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel

BASELINE, RESD, DARE = "autoregressive", "global pool, greedy (ReSD)", "group pools, relaxed (DARE)"
console = Console()
Way = tuple[Drafter | None, Verification]


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


def held_out_requests(model: KnowledgeModel, data: Path, entities: int, harder: bool, seed: int) -> list[Request]:
    """Half of users and half of items that the language model was not trained on."""
    dataset = read_dataset(data)
    histories = training_histories(dataset)
    draw = np.random.default_rng(seed)
    requests = []
    for texts, of_users in ((user_texts(dataset, harder=harder), True), (item_texts(dataset, harder=harder), False)):
        held_out = [text.entity for text in split_texts(texts)[1]]
        for entity in draw.permutation(held_out)[: entities // 2].tolist():
            requests.append(model.user_request(histories[entity]) if of_users else model.item_request(entity))
    return requests


def measure(model: KnowledgeModel, way: Way, batch_size: int, requests: Sequence[Request]) -> dict[str, Any]:
    """One run over all requests: speed, and the tokens of every text under `texts`."""
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
    return {
        "batch_size": batch_size,
        "tokens_per_s": statistics.tokens / seconds,
        "tokens_per_step": statistics.tokens_per_step,
        "outside_model": 1 - statistics.llm_s / seconds,
        "drafted": sum(statistics.drafted_by_depth.values()),
        "accepted": sum(statistics.accepted_by_depth.values()),
        "accepted_by_depth": statistics.accepted_by_depth,
        "drafted_by_depth": statistics.drafted_by_depth,
        "texts": [done[index].tokens.tolist() for index in range(len(requests))],
    }


def differing(texts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> int:
    """Texts that are not the plain ones, token for token."""
    return sum(text != other for text, other in zip(texts, plain, strict=True))


def lookup_ms(model: KnowledgeModel, requests: Sequence[Request], texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Quantiles of a lookup in the global pool, the largest, at every tenth token of `texts`; in ms."""
    drafter = PoolDrafter(model.pools, grouped=False)
    times = []
    for request, text in zip(requests, texts, strict=True):
        tokens = np.concatenate([request.prompt, np.array(text, np.int32)])
        for size in range(request.prompt.size + 1, tokens.size, 10):
            began = time.perf_counter()
            drafter.draft(tokens[:size], request.prompt.size, request.group, 12)
            times.append(1e3 * (time.perf_counter() - began))
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Tokens per second over the batch size, a line per way of drafting."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, cells in runs.items():
        axes.plot(
            [cell["batch_size"] for cell in cells], [cell["tokens_per_s"] for cell in cells], marker="o", label=name
        )
    axes.set(xscale="log", xlabel="texts at once", ylabel="tokens per second", ylim=0)
    sizes = [cell["batch_size"] for cell in runs[BASELINE]]
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results.")],
    entities: Annotated[int, typer.Option(min=2)] = 100,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,4,8,16,32",
    threads: Annotated[int, typer.Option(help="Of PyTorch; 0 for one per core.")] = 0,
    harder: Annotated[bool, typer.Option(help="The folder was built with --harder.")] = False,
    ablate: Annotated[bool, typer.Option(help="Ablations too, at the best batch size.")] = True,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Measure every way of drafting at every batch size, then DARE's ablations."""
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities, harder, seed)
    sizes = [int(size) for size in batch_sizes.split(",")]
    compared = ways(model)
    measure(model, compared[DARE], sizes[-1], requests[: sizes[-1]])  # warm-up
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in compared}
    for size in sizes:  # in turn, so that a machine that slows down slows all of them
        for name, way in compared.items():
            runs[name].append(measure(model, way, size, requests))
    plain = {cell["batch_size"]: cell["texts"] for cell in runs[BASELINE]}
    best = {name: max(cells, key=lambda cell: cell["tokens_per_s"]) for name, cells in runs.items()}
    tries = {}
    if ablate:
        size = best[DARE]["batch_size"]
        tries = {name: measure(model, way, size, requests) for name, way in ablations(model).items()}
    lookup = lookup_ms(model, requests, plain[sizes[0]])

    def table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
        shown = Table(
            "", "batch", "tokens/s", "speed-up", "tokens/step", "accepted", "outside model", "texts differ", title=title
        )
        for name, cell in rows.items():
            cell["speed_up"] = cell["tokens_per_s"] / best[BASELINE]["tokens_per_s"]
            cell["texts_differ"] = differing(cell["texts"], plain[cell["batch_size"]])
            shown.add_row(
                name,
                str(cell["batch_size"]),
                f"{cell['tokens_per_s']:.0f}",
                f"{cell['speed_up']:.2f}",
                f"{cell['tokens_per_step']:.2f}",
                f"{cell['accepted'] / max(1, cell['drafted']):.2f}",
                f"{cell['outside_model']:.0%}",
                str(cell["texts_differ"]),
            )
        return shown

    console.print(table(f"{len(requests)} texts, each way at its best batch size", best))
    for size in sizes:
        at = {name: next(cell for cell in cells if cell["batch_size"] == size) for name, cells in runs.items()}
        console.print(table(f"{size} at once", at))
    if tries:
        console.print(table("DARE with one thing changed", tries))
    console.print(f"DARE against ReSD: {best[DARE]['tokens_per_s'] / best[RESD]['tokens_per_s']:.2f}")
    console.print("lookup in the global pool, ms:", {name: round(value, 3) for name, value in lookup.items()})
    out.mkdir(parents=True, exist_ok=True)
    plot(runs, out / "speed.svg")
    for cell in (*(cell for cells in runs.values() for cell in cells), *tries.values()):
        del cell["texts"]
    results = {
        "runs": runs,
        "ablations": tries,
        "lookup_ms": lookup,
        "pool_tokens": model.pools.by_group["global"].tokens,
        "texts": len(requests),
        "threads": torch.get_num_threads(),
        "relaxed": asdict(RELAXED),
        "commit": this_commit(),
        "machine": this_machine().model_dump(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
