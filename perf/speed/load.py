"""Load test of one bundle: a real Triton under perf_analyzer and Locust, and one report.

python -m perf.speed.load build/shop-bundle build/load/shop --data build/shop
python -m perf.speed.load_report build/load/both build/load/shop build/load/other    # results side by side
"""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.reporting.machine import provenance
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.statistics import read_step_counts
from genrec.serving.triton import TritonServer
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out
from perf.speed.analyzer import Answers, Load, run_analyzer, write_requests
from perf.speed.load_report import RESULTS, write_report
from perf.speed.usage import Usage

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
DEADLINE_S = 60.0  # of every request: a load test shows how late answers come, it does not shed them
COUNTED_LATE_S = 0.2  # Triton counts a request a moment after it has answered
LEAST_REQUESTS = 30
console = Console(stderr=True, soft_wrap=True)


def watched(server: TritonServer, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, and what server, client and the ensemble's steps did meanwhile."""
    assert server.pid is not None
    before = read_step_counts(server.grpc_url)
    spent, began = _client_seconds(), time.monotonic()
    with Usage(server.pid) as usage:
        result = work()
    client = (_client_seconds() - spent) / (time.monotonic() - began)
    time.sleep(COUNTED_LATE_S)
    steps = {name: counts.since(before[name]) for name, counts in read_step_counts(server.grpc_url).items()}
    return result, {
        "server_cores": usage.cores,
        "server_peak_mb": usage.peak_mb,
        "client_cores": client,
        "steps": {
            name: {"batch": counts.batch} | {f"{key}_ms": counts.mean_ms(key) for key in ("total", "queue", "infer")}
            for name, counts in steps.items()
        },
    }


def summary(answers: Answers) -> dict[str, float]:
    """The figures of a run that are reported."""
    p50, p95, p99 = answers.percentile(50, 95, 99)
    mean = float(answers.latency_ms.mean())
    return {"p50": p50, "p95": p95, "p99": p99, "mean": mean, "throughput": answers.throughput}


def _client_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class LoadTest:
    """A server and where the raw results go. histories: int32 catalogue rows of the users who ask."""

    def __init__(self, server: TritonServer, bundle: Bundle, histories: list[np.ndarray], folder: Path) -> None:
        self.server, self.folder = server, folder
        self.requests, self.histories = folder / "requests.json", folder / "histories.json"
        write_requests(bundle, histories, self.requests)
        ids = bundle.catalog.item_ids
        self.histories.write_text(json.dumps([[ids[row].decode() for row in rows] for rows in histories]))

    def analyzer(self, load: Load, number: int) -> dict[str, Any]:
        """One run of perf_analyzer."""
        folder = self.folder / load.name / str(number)
        answers, usage = watched(self.server, lambda: run_analyzer(self.server.grpc_url, self.requests, load, folder))
        found = summary(answers)
        console.print(f"{load.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return {"load": asdict(load), "round": number, **found, **usage}

    def sweep(self, loads: Callable[[float], Load], values: list[float], rounds: int) -> list[dict[str, Any]]:
        """`loads` of every value, `rounds` times, in turn."""
        return [self.analyzer(loads(value), number) for number in range(rounds) for value in values]

    def locust(self, shape: str, users: int, seconds: float, think_s: float) -> dict[str, Any]:
        """One run of Locust without its web page."""
        folder = self.folder / f"locust-{shape}"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", "--only-summary"]
        command += ["--host", self.server.grpc_url, "--histories", self.histories, "--shape", shape]
        command += ["--users", users, "--run-time", f"{seconds:.0f}", "--think-s", think_s, "--timeout-s", DEADLINE_S]
        command += ["--csv", folder / "locust", "--csv-full-history", "--html", folder / "report.html"]

        def work() -> str:
            ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            output = ended.stdout + ended.stderr
            (folder / "output.txt").write_text(output)
            if ended.returncode not in (0, 1):  # 1: some requests failed, which the figures say
                raise RuntimeError(f"locust ended with status {ended.returncode}: {output.strip()[-800:]}")
            return output

        output, usage = watched(self.server, work)
        total = _aggregated(folder / "locust_stats.csv")[-1]
        retries = re.search(r"retries (\d+) of", output)
        found = {
            "shape": shape,
            "users": users,
            "requests": int(total["Request Count"]),
            "failures": int(total["Failure Count"]),
            "retries": int(retries[1]) if retries else None,
            **{name: float(total[title]) for name, title in (("p50", "50%"), ("p95", "95%"), ("p99", "99%"))},
            "throughput": float(total["Requests/s"]),
            "over_time": [
                {
                    "users": int(row["User Count"]),
                    "rate": float(row["Requests/s"]),
                    "p50": _number(row["50%"]),
                    "p99": _number(row["99%"]),
                }
                for row in _aggregated(folder / "locust_stats_history.csv")
            ],
        }
        console.print(f"locust {shape}: {found['requests']} requests, p50 {found['p50']}, p99 {found['p99']} ms")
        return found | usage


@contextmanager
def load_test(
    bundle: Bundle,
    histories: list[np.ndarray],
    folder: Path,
    engine: str = "onnx",
    threads: int = 0,
    instances: int = 1,
    deadline_s: float = 600.0,
    precision: str = "auto",
) -> Iterator[LoadTest]:
    """A `LoadTest` of a server on `bundle`, which stops with the block. deadline_s: of every request."""
    folder.mkdir(parents=True, exist_ok=True)
    timeout_ms = int(1e3 * deadline_s)
    deployment = Deployment(engine, threads, instances, timeout_ms=timeout_ms, precision=precision)
    with serve_bundle(bundle.path, deployment, log_path=folder / "triton.log") as server:
        yield LoadTest(server, bundle, histories, folder)


def _aggregated(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]


def _number(text: str) -> float | None:
    return None if text == "N/A" else float(text)


def main(
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve.")],
    out: Annotated[Path, typer.Argument(help="Folder of the report, its figures, and the raw results.")],
    data: Annotated[Path, typer.Option(help="Dataset whose test users ask, with their own histories.")],
    users: Annotated[int, typer.Option(min=1, help="Users drawn from it.")] = 500,
    engine: str = "onnx",
    precision: Annotated[str, typer.Option(help="Of the engine, as `genrec serve` takes it.")] = "auto",
    threads: Annotated[int, typer.Option(help="Of an engine; 0 for one per core.")] = 0,
    instances: Annotated[int, typer.Option(min=1, help="Engines side by side.")] = 1,
    concurrency: Annotated[str, typer.Option(help="Requests under way, comma-separated.")] = "1,2,4,8,16",
    arrivals: Annotated[
        str, typer.Option(help="Poisson arrivals, as shares of the saturated throughput.")
    ] = "0.3,0.5,0.7,0.9",
    seconds: Annotated[float, typer.Option(min=1, help="Of each run.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each load, in turn.")] = 3,
    shapes: Annotated[str, typer.Option(help="Of Locust's users over time; empty for none.")] = "steady,ramp,spike",
    locust_seconds: Annotated[float, typer.Option(min=3, help="Of each shape.")] = 30.0,
    think_s: Annotated[float, typer.Option(help="Mean pause of a Locust user.")] = 1.0,
) -> None:
    """Serve a bundle, measure it under load, and write `report.md`."""
    bundle = Bundle(bundle_path)
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    histories = [rows for rows in histories if rows.size]
    with load_test(bundle, histories, out, engine, threads, instances, DEADLINE_S, precision) as test:
        alone = test.analyzer(Load(LEAST_REQUESTS, 1), -1)["throughput"]  # warms up, and says how many are enough

        def enough(rate: float) -> int:
            return max(LEAST_REQUESTS, round(rate * seconds))

        closed = test.sweep(lambda n: Load(enough(alone), int(n)), [float(n) for n in concurrency.split(",")], rounds)
        saturated = max(run["throughput"] for run in closed)
        rates = [float(share) * saturated for share in arrivals.split(",")]
        opened = test.sweep(lambda rate: Load(enough(rate), rate=rate), rates, rounds)
        crowd = max(1, round(0.7 * saturated * think_s))
        locust = [test.locust(shape, crowd, locust_seconds, think_s) for shape in shapes.split(",") if shape]
    results = {
        "settings": provenance()
        | {
            "bundle": bundle_path.name,
            "version": bundle.manifest.bundle_version,
            "parameters": bundle.manifest.training["parameters"],
            "decoder": bundle.manifest.training["decoder"],
            "beam_width": bundle.manifest.beam_width,
            "levels": list(bundle.manifest.levels),
            "items": bundle.manifest.catalog.items,
            "engine": engine,
            "precision": precision,
            "threads": threads or "one per core",
            "instances": instances,
            "users": len(histories),
            "mean_history": float(np.mean([rows.size for rows in histories])),
        },
        "closed": closed,
        "open": opened,
        "locust": locust,
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"report: {write_report(out, [out])}")


if __name__ == "__main__":
    typer.run(main)
