"""What serving adds: the ensemble at concurrency 1 against the bare engine, same requests, in turn, in one run.

python perf/overhead.py build/shop-bundle --data build/shop
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton
import typer
from genrec_client import Recommender
from rich.console import Console
from rich.table import Table

from builders.dataset import read_dataset, split_leave_one_out
from builders.evaluate import sample_users
from builders.machine import this_commit, this_machine
from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.serving.repository import STEPS, Deployment
from genrec.serving.serve import serve_bundle

PAUSE_S = 0.1  # between the two: ONNX Runtime's threads go on spinning for a while


def measure(bundle: Bundle, histories: list[np.ndarray], rounds: int, threads: int, log: Path) -> dict[str, Any]:
    """Milliseconds per request of both, in turn round by round, each one request after the other; mean of each step."""
    ids = [[bundle.catalog.item_ids[row] for row in history] for history in histories]
    prompts = [bundle.layout.encode(bundle.catalog.sids[history]) for history in histories]
    engine = open_engine(bundle, threads=threads)
    times: dict[str, list[float]] = {"bare engine": [], "ensemble": []}
    with serve_bundle(bundle.path, Deployment(threads=threads), log_path=log) as server:
        statistics = triton.InferenceServerClient(server.grpc_url)
        with Recommender(server.grpc_url, timeout_s=10.0) as client:
            for number in range(rounds + 1):  # the first round warms up
                for name, call, inputs in (
                    ("bare engine", lambda prompt: engine.draft([prompt]), prompts),
                    ("ensemble", client.recommend, ids),
                ):
                    time.sleep(PAUSE_S)
                    for one in inputs:
                        began = time.perf_counter()
                        call(one)
                        if number:
                            times[name].append(1e3 * (time.perf_counter() - began))
        steps = {}
        for name in STEPS:
            stats = statistics.get_inference_statistics(name).model_stats[0].inference_stats
            steps[name] = stats.success.ns / max(1, stats.success.count) / 1e6
    return {"times": times, "step_mean_ms": steps}


def main(
    bundles: Annotated[list[Path], typer.Argument(help="The bundles to serve, one after the other.")],
    data: Annotated[Path, typer.Option(help="Dataset whose test users ask.")],
    users: int = 100,
    rounds: int = 10,
    threads: int = 0,
    out: Annotated[Path, typer.Option(help="Raw figures, JSON.")] = Path("build/perf/overhead.json"),
) -> None:
    """Measure and print the overhead of serving; a ratio is of the medians."""
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    reports = []
    for path in bundles:
        bundle = Bundle(path)
        manifest = bundle.manifest
        found = measure(bundle, histories, rounds, threads, out.with_suffix(".log"))
        parameters = manifest.training["parameters"]
        title = (
            f"{path.name}: {parameters / 1e6:.1f} M parameters, beam {manifest.beam_width}, levels {manifest.levels}"
        )
        table = Table("concurrency 1", "p50 ms", "p95 ms", "p99 ms", "mean ms", title=title)
        for name, times in found["times"].items():
            p50, p95, p99 = np.percentile(times, [50, 95, 99])
            table.add_row(name, *(f"{x:.2f}" for x in (p50, p95, p99)), f"{np.mean(times):.2f}")
        console.print(table)
        ratio = float(np.median(found["times"]["ensemble"]) / np.median(found["times"]["bare engine"]))
        console.print(f"ratio of medians, ensemble / bare engine: {ratio:.2f}")
        console.print(
            "mean ms in each step, waiting included:", {k: round(v, 2) for k, v in found["step_mean_ms"].items()}
        )
        reports.append(found | {"bundle": path.name, "parameters": parameters, "ratio": ratio})
    settings = {
        "commit": this_commit(),
        "machine": this_machine().model_dump(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "threads": threads or "one per core",
        "requests": users * rounds,
    }
    console.print(settings)
    out.write_text(json.dumps({"settings": settings, "bundles": reports}, indent=1))


if __name__ == "__main__":
    typer.run(main)
