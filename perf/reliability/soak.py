"""A long run: two servers under mixed load, on a catalogue that changes, while processes of one of them are killed.

python -m perf.reliability.soak build/shop-bundle build/shop build/knowledge build/soak --minutes 60

Users ask both servers through one client, with and without rules; texts are streamed from the first server; a shop
changes the catalogue. Every few minutes a process of the second server is killed, in turn its Triton, its models'
processes, its front and its follower. No request may fail and no answer be wrong; the first server, which is left
alone, may not grow.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.live.init import init_catalog
from genrec.reporting.machine import provenance
from genrec.serving.triton.ports import choose_ports
from perf.reliability.traffic import Traffic
from perf.reliability.watch import SHARED, Sample, processes_of, slope, watched

HOST = "127.0.0.1"
RESULTS, PLOT = "soak.json", "soak.svg"
KILLED = ("triton", "backbone", "haproxy", "preprocessing", "follower", "verifier")
GROWS_MB = 1.0  # in ten minutes, at most
BACK_S = 60.0
console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class Served:
    """A `genrec serve`. url: of its gRPC port, http: of the other one."""

    process: subprocess.Popen[bytes]
    url: str
    http: str

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http}/v2/models/recommend/ready", timeout=1):
                return True
        except OSError:
            return False

    def wait_until_ready(self, within_s: float) -> float:
        """Seconds that it took. Raises RuntimeError where it takes longer, or has ended."""
        began = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() - began > within_s:
                raise RuntimeError(f"{self.url} is not ready after {time.monotonic() - began:.0f} s: see its log")
            time.sleep(0.1)
        return time.monotonic() - began


@contextmanager
def served(bundle: Path, store: str, cache: Path, log_path: Path, more: list[str]) -> Iterator[Served]:
    """A server of a bundle and a live catalogue, kept in `cache` meanwhile; it ends with the block."""
    ports = choose_ports(HOST, dict.fromkeys(("grpc", "http", "metrics", "front-metrics"), 0))
    words = ["serve", str(bundle), "--catalog", store, "--catalog-cache", str(cache), "--threads", "1"]
    words += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "genrec.cli", *words, "--restarts", "1000", *more], stdout=log, stderr=log
        )
        try:
            yield Served(process, f"{HOST}:{ports['grpc']}", f"http://{HOST}:{ports['http']}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def kill(server: Served, what: str) -> float:
    """End a process of the server; seconds until it is there again and the server is ready."""
    victim = processes_of(server.process.pid)[what]
    began = time.monotonic()
    victim.kill()
    while True:
        now = processes_of(server.process.pid).get(what)
        if now is not None and now.pid != victim.pid and server.is_ready():
            return time.monotonic() - began
        if time.monotonic() - began > BACK_S:
            raise RuntimeError(f"{what} of {server.url} was killed and is not back after {BACK_S:.0f} s: see its log")
        time.sleep(0.05)


def verdict(found: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words."""
    said = [*found["wrong"], *found["failed"]]
    if found["left_in_shared_memory"]:
        said.append(f"left in {SHARED}: {', '.join(found['left_in_shared_memory'])}")
    if found["grows"]["anonymous_mb"] > GROWS_MB:
        said.append(f"memory grows by {found['grows']['anonymous_mb']:.2f} MB in ten minutes, limit {GROWS_MB:g}")
    said += [
        f"{name} grow by {found['grows'][name]:.2f} in ten minutes"
        for name in ("handles", "threads", "regions")
        if found["grows"][name] > 1
    ]
    return said


def plot(samples: list[Sample], killed: list[dict[str, Any]], path: Path) -> None:
    """Figures of the first server over time; marks where a process of the second one was killed."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    minutes = [one.seconds / 60 for one in samples]
    shown = {
        "memory, MB": "anonymous_mb",
        "shared memory, MB": "shared_mb",
        "file handles": "handles",
        "threads": "threads",
    }
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(8, 8), sharex=True, layout="constrained")
    for axis, (title, name) in zip(axes, shown.items(), strict=True):
        axis.plot(minutes, [getattr(one, name) for one in samples], color="#1f6feb")
        for one in killed:
            axis.axvline(one["seconds"] / 60, color="#d29922", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("minutes; lines: a process of the other server was killed")
    figure.savefig(path)
    pyplot.close(figure)


def main(
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve, of the demo shop.")],
    data: Annotated[Path, typer.Argument(help="Its dataset.")],
    knowledge: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    out: Annotated[Path, typer.Argument(help=f"Folder of {RESULTS}, {PLOT} and the servers' logs.")],
    minutes: Annotated[float, typer.Option(min=0.5, help="Of load.")] = 60.0,
    kill_s: Annotated[float, typer.Option(min=1, help="Seconds between kills.")] = 300.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Recommendations a second.")] = 20.0,
    change_s: Annotated[float, typer.Option(min=0.1, help="Seconds between changes of the catalogue.")] = 2.0,
    warm_up: Annotated[
        float, typer.Option(min=0, help="Minutes that do not count for what grows: rules' caches fill up until then.")
    ] = 20.0,
) -> None:
    """Exit status 1 if a request failed, an answer was wrong, or the server that is left alone grew."""
    bundle = Bundle(bundle_path)
    out.mkdir(parents=True, exist_ok=True)
    seen: set[Path] = set()
    killed: list[dict[str, Any]] = []
    with TemporaryDirectory(dir=out) as scratch, ExitStack() as running:
        store = f"{scratch}/store"
        init_catalog(bundle, store)
        texts = ["--knowledge", str(knowledge), "--texts-at-once", "2"]
        first, second = (
            running.enter_context(served(bundle_path, store, Path(scratch, name), out / f"{name}.log", more))
            for name, more in (("first", texts), ("second", []))
        )
        for server in (first, second):
            server.wait_until_ready(120)
        traffic = Traffic(
            bundle, data, store, [first.url, second.url], first.url, Path(scratch), rate=rate, change_s=change_s
        )
        began = time.monotonic()
        pids = first.process.pid, second.process.pid
        with watched(pids, seen, min(10.0, 2 * minutes)) as samples, traffic.running():
            for number in range(int(60 * minutes / kill_s) + 1):
                time.sleep(max(0.0, min(began + kill_s * (number + 1), began + 60 * minutes) - time.monotonic()))
                if time.monotonic() - began >= 60 * minutes - 1:
                    break
                what, at = KILLED[number % len(KILLED)], time.monotonic() - began
                killed.append({"seconds": at, "what": what, "back_s": kill(second, what)})
                console.print(f"{at / 60:5.1f} min: {what} killed, back after {killed[-1]['back_s']:.1f} s")
    took = np.array(traffic.found.took_ms)
    found = {
        "settings": provenance(
            bundle=bundle.manifest.bundle_version, minutes=minutes, kill_s=kill_s, rate=rate, change_s=change_s
        ),
        "answered": dict(traffic.found.answered),
        "wrong": traffic.found.wrong,
        "failed": traffic.found.failed,
        "took_ms": {f"p{at}": float(np.percentile(took, at)) for at in (50, 95, 99, 100)} if len(took) else {},
        "killed": killed,
        "grows": {
            name: slope(samples[pids[0]], name, min(60 * warm_up, 30 * minutes))
            for name in ("anonymous_mb", "shared_mb", "regions", "handles", "threads")
        },
        "left_in_shared_memory": sorted(path.name for path in seen if path.exists()),
        "samples": [asdict(one) for one in samples[pids[0]]],
    }
    (out / RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    plot(samples[pids[0]], killed, out / PLOT)
    said = verdict(found)
    console.print(f"{found['answered']}, grows in ten minutes: {found['grows']}", *said[:20], sep="\n")
    raise typer.Exit(bool(said))


if __name__ == "__main__":
    typer.run(main)
