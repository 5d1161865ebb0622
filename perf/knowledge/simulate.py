"""A simulation of what drafts gain for a large model on a GPU, from what they gained for the small one here.

python -m perf.knowledge.simulate record build/knowledge build/shop build/knowledge-simulation
python -m perf.knowledge.simulate replay build/knowledge-simulation

`record` writes texts and what could have been drafted at each of their places, measures what passes cost on this
machine, and checks the simulator: it replays the texts at that cost, and compares with runs that were measured.
`replay` replays them at the cost of a pass of a 7 B model on an H100, by its bandwidth and arithmetic. Nothing is
measured there, and the texts are the small model's: a large one may be easier or harder to draft for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from genrec.knowledge.drafter import PoolDrafter, RunningText
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.knowledge.texts import GREEDY, TextRequest
from genrec.reporting.machine import provenance
from genrec.reporting.page import markdown_table
from genrec.reporting.timing import in_turn
from perf.knowledge.pass_cost import H100_7B, MeasuredCost, RooflineCost, Step
from perf.knowledge.replay import Chances, Replayed, by_load, fixed_trees, replay
from perf.knowledge.runs import Way, held_out_requests
from perf.knowledge.trace import Trace, traced

app = typer.Typer(help=__doc__)
NODES, SHARE = 16, 0.1  # of the trees that are measured
LARGE_NODES, LARGE_SHARE = 64, 0.01  # of the trees of the trace
FITTED, CHECKED = (1, 4, 16, 64), (1, 8, 32, 64)  # texts at once
SIMULATED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PLAIN, FIXED, ADAPTIVE = "one token at a time", f"trees of {NODES}", "trees by load"
LARGE = f"trees of {LARGE_NODES}"
Out = Annotated[Path, typer.Argument(help="Folder of the trace and the results.")]


def timed_steps(
    model: KnowledgeModel, way: Way, batch_size: int, requests: Sequence[TextRequest]
) -> tuple[list[Step], list[np.ndarray], float]:
    """Every step of writing all texts; the texts' tokens; and tokens per second."""
    session = model.decoder(way.verification, batch_size, drafter=way.drafter, fixed=way.fixed).session()
    for request in requests:
        session.submit(request)
    steps, written = [], [np.empty(0, np.int32)] * len(requests)
    while session.pending:
        drafted, began = sum(session.statistics.drafted_by_depth.values()), time.perf_counter()
        progress = session.step()
        seconds = time.perf_counter() - began
        drafted = sum(session.statistics.drafted_by_depth.values()) - drafted
        begun = [requests[one.index].prompt.size for one in progress if not written[one.index].size]
        cached = sum(requests[one.index].prompt.size + max(1, written[one.index].size) for one in progress)
        steps.append(Step(seconds, len(begun), sum(begun), len(progress), cached, len(progress) + drafted))
        for one in progress:
            written[one.index] = np.append(written[one.index], one.tokens)
    return steps, written, session.statistics.tokens / sum(step.seconds for step in steps)


def drafting_s(model: KnowledgeModel, requests: Sequence[TextRequest], texts: Sequence[np.ndarray]) -> float:
    """Median seconds to draft for a text, of all `texts` at once."""
    drafter, spent = PoolDrafter(model.pools, max_nodes=NODES, min_share=SHARE), []
    pairs = list(zip(requests, texts, strict=True))
    for size in range(2, 60, 2):
        running = [
            RunningText(np.append(request.prompt, text[:size]).astype(np.int32), request.prompt.size, request.group, 64)
            for request, text in pairs
        ]
        began = time.perf_counter()
        drafter.draft(running)
        spent.append((time.perf_counter() - began) / len(running))
    return median(spent)


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    out: Out,
    entities: Annotated[int, typer.Option(min=2, help="Users and items whose texts are written, together.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in turn; of the checked speeds medians count.")] = 3,
) -> None:
    """Record texts and drafts, measure passes, and check the simulator against measured runs."""
    out.mkdir(parents=True, exist_ok=True)
    model = KnowledgeModel(folder)
    requests, others = (held_out_requests(model, data, entities, seed=seed) for seed in (0, 1))
    ways: dict[str, Way] = {
        PLAIN: Way(None, GREEDY),
        FIXED: Way(PoolDrafter(model.pools, max_nodes=NODES, min_share=SHARE), RELAXED),
    }
    _, texts, _ = timed_steps(model, ways[FIXED], 32, requests)
    trace = traced(PoolDrafter(model.pools, max_nodes=LARGE_NODES, min_share=LARGE_SHARE), requests, texts)
    trace.save(out / "trace.npz")

    def of_size(size: int, those: Sequence[TextRequest]) -> Sequence[TextRequest]:
        return those[: max(24, 2 * size)]

    calls = {("fit", name, size): (ways[name], size, of_size(size, others)) for size in FITTED for name in ways}
    calls |= {("check", name, size): (ways[name], size, of_size(size, requests)) for size in CHECKED for name in ways}
    runs = in_turn(calls, rounds, lambda call: timed_steps(model, *call), warm_up=0)
    steps = [step for (kind, _, _), found in runs.items() if kind == "fit" for of_run in found for step in of_run[0]]
    cost = MeasuredCost.fitted(steps)
    rows, checks = [], []
    for size in CHECKED:
        part = trace.of(len(of_size(size, requests)))
        for name in ways:
            rate = median(rate for _, _, rate in runs["check", name, size])
            choose = None if name == PLAIN else fixed_trees(NODES, SHARE)
            expected = replay(part, size, cost, choose).tokens_per_s
            checks.append({"way": name, "batch_size": size, "measured": rate, "simulated": expected})
            rows.append((size, name, f"{rate:.0f}", f"{expected:.0f}", f"{expected / rate - 1:+.0%}"))
    lines = markdown_table(("texts at once", "", "measured tokens/s", "simulated", "error"), rows)
    print("\n".join(lines))
    found = {"cost": cost.weights.tolist(), "checks": checks, "draft_s": drafting_s(model, requests[:32], texts[:32])}
    settings = provenance(entities=entities, rounds=rounds)
    (out / "recorded.json").write_text(json.dumps({**found, **settings}, indent=1) + "\n")
    (out / "check.md").write_text("\n".join(lines) + "\n")


def simulated(trace: Trace, cost: RooflineCost, draft_s: float) -> dict[str, list[Replayed]]:
    """By name of a way, texts written at every batch size of `SIMULATED`."""
    ways = {
        PLAIN: None,
        FIXED: fixed_trees(NODES, SHARE),
        LARGE: fixed_trees(LARGE_NODES, LARGE_SHARE),
        ADAPTIVE: by_load(Chances(trace)),
    }
    return {
        name: [
            replay(
                trace,
                size,
                cost,
                choose,
                draft_s=draft_s if choose else 0.0,
                pauses=name == ADAPTIVE,
                texts=max(len(trace.lengths), 8 * size),
            )
            for size in SIMULATED
        ]
        for name, choose in ways.items()
    }


@app.command(name="replay")
def replay_large(out: Out) -> None:
    """Simulate a 7 B model on an H100 over the trace; prints a table, and writes it, results and a plot."""
    trace = Trace.load(out / "trace.npz")
    draft_s = json.loads((out / "recorded.json").read_text())["draft_s"]
    found = {
        f"drafting {label}": simulated(trace, H100_7B, seconds)
        for label, seconds in (("hidden behind the pass", 0.0), (f"{1e6 * draft_s:.0f} µs a text on the host", draft_s))
    }
    lines: list[str] = []
    for title, runs in found.items():
        lines += [f"SIMULATED, 7 B on an H100, {title}:", "", *_table(runs), ""]
    print("\n".join(lines))
    _plot(found, out / "simulation.svg")
    (out / "simulation.md").write_text("\n".join(lines) + "\n")
    runs_json: dict[str, Any] = {
        title: {name: [asdict(run) for run in of_way] for name, of_way in runs.items()} for title, runs in found.items()
    }
    results = {"simulated": runs_json, "batch_sizes": SIMULATED, "cost": asdict(H100_7B), **provenance()}
    (out / "simulation.json").write_text(json.dumps(results, indent=1) + "\n")


def _table(runs: dict[str, list[Replayed]]) -> list[str]:
    columns = ["texts at once", f"{PLAIN}: tokens/s"]
    for name in runs:
        if name != PLAIN:
            columns += [f"{name}: speed-up", "drafted a text", "tokens a step"]
    rows = []
    for at, size in enumerate(SIMULATED):
        plain = runs[PLAIN][at].tokens_per_s
        row = [str(size), f"{plain:.0f}"]
        for name, found in runs.items():
            if name != PLAIN:
                run = found[at]
                row += [f"{run.tokens_per_s / plain:.2f}", f"{run.drafted:.1f}", f"{run.tokens_per_step:.1f}"]
        rows.append(row)
    return markdown_table(columns, rows)


def _plot(found: dict[str, dict[str, list[Replayed]]], path: Path) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    figure.suptitle("Simulation, not a measurement: 7 B in bf16 on an H100")
    for axes, (title, runs) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for name, of_way in runs.items():
            ratios = [one.tokens_per_s / plain.tokens_per_s for one, plain in zip(of_way, runs[PLAIN], strict=True)]
            axes.plot(SIMULATED, ratios, marker="o", label=name)
        axes.set(xscale="log", xlabel="texts at once", ylim=0, title=title)
        axes.set_xticks(SIMULATED, map(str, SIMULATED), fontsize="small")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("times as fast as one token at a time")
    figure.savefig(path)


if __name__ == "__main__":
    app()
