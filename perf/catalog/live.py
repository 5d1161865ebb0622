"""A live catalogue behind a real server: how soon a change shows, how many it takes, what it costs the users.

python -m perf.catalog.live build/catalog-bench --items 10000000

Random semantic IDs (L = 4, T = 256) over the 3 M backbone of the speed cells, with random weights: a change is an item
that gets the semantic ID of a user's best draft, so that its user is recommended it as soon as it shows.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.catalog.published import CURRENT, Record, load_version
from genrec.live.changes import Changes
from genrec.live.status import Status
from genrec.live.store import CatalogStore
from genrec.reporting.machine import provenance
from genrec.reporting.timing import median_ratio
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec_client import AsyncRecommender, Recommender
from perf.speed.cells import Cell, cell_bundle

CELL = Cell("3M", 20, 4, 128)
RESULTS = "live.json"
_BATCH = 1 << 20
console = Console(stderr=True, soft_wrap=True)


@dataclass
class Bench:
    """A server, its store, and one user."""

    url: str
    store: CatalogStore
    root: Path
    bundle: Bundle
    location: str
    items: int
    history: list[str]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    version: int = 0

    def changes(self, count: int) -> Changes:
        """Random ones; see `random_changes`."""
        return random_changes(self.rng, self.bundle.space.size, self.items, count)

    def probe(self, code: int, number: int) -> tuple[str, Changes]:
        """An item with the semantic ID `code`, more popular than any other."""
        name = f"probe-{number}-{time.time_ns()}"
        one = np.ones(1, np.int8)
        return name, Changes(np.array([name.encode()]), one == 0, np.array([code]), np.array([time.time_ns()]), one)

    def commit(self, changes: Changes) -> None:
        self.version = self.store.commit(changes, self.version, "bench")


def shown_after(bench: Bench, commits: int, size: int) -> dict[str, Any]:
    """Seconds from a commit to the first answer with its item; `size` changes in each commit."""
    spent = []
    with Recommender(bench.url, timeout_s=30.0) as client:
        for number in range(commits):
            code = _draft(bench, client)
            name, probe = bench.probe(code, number)
            changes = probe if size == 1 else Changes.concatenate([probe, bench.changes(size - 1)])
            time.sleep(bench.rng.uniform(0, 0.5))  # not in step with the follower
            bench.commit(changes)
            began = time.perf_counter()
            while name not in client.recommend(bench.history, top_k=50).item_ids:
                if time.perf_counter() - began > 120:
                    raise RuntimeError(f"{name} does not show after two minutes")
            spent.append(time.perf_counter() - began)
            console.print(f"{size} changes: {spent[-1]:.2f} s")
    return {"changes": size, "seconds": spent} | _quantiles(spent)


def _draft(bench: Bench, client: Recommender) -> int:
    """A code that is sure to be drafted for the user: that of an item that it is recommended."""
    best = client.recommend(bench.history, top_k=1).item_ids[0]
    record = Record.load(bench.root / CURRENT)
    version = load_version(bench.root, record.version, bench.bundle.space)
    wanted = np.empty(1, object)
    wanted[0] = best.encode()
    return int(bench.bundle.space.encode(version.sids_of(version.rows_of(wanted)))[0])


def sustained(bench: Bench, per_second: int, seconds: float) -> dict[str, Any]:
    """Lag while `per_second` changes are committed every second, one commit each."""
    lags: list[float] = []
    ends = threading.Event()

    def watch() -> None:
        while not ends.wait(0.1):
            lags.append(Status.load(bench.root).lag_s(time.time()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, late = time.monotonic(), 0.0
    for second in range(round(seconds)):
        changes = bench.changes(per_second)
        wait = began + second - time.monotonic()
        late = max(late, -wait)
        time.sleep(max(0.0, wait))
        bench.commit(changes)
    while Status.load(bench.root).published < bench.version:
        time.sleep(0.05)
    caught_up = time.monotonic() - began - seconds
    ends.set()
    watcher.join()
    found = {"per_second": per_second, "seconds": seconds, "writer_late_s": late, "caught_up_after_s": caught_up}
    return found | {"largest_lag_s": max(lags)} | _quantiles(lags)


def users(bench: Bench, rate: float, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of every request, sent at `rate` a second whatever the answers take; and how many failed."""
    spent: list[float] = []
    failed = 0

    async def one(client: AsyncRecommender) -> None:
        nonlocal failed
        began = time.perf_counter()
        try:
            await client.recommend(bench.history, top_k=10)
            spent.append(1e3 * (time.perf_counter() - began))
        except Exception:
            failed += 1

    async def all_of_them() -> None:
        async with AsyncRecommender(bench.url, timeout_s=10.0) as client:
            await asyncio.gather(*(one(client) for _ in range(4)))
            spent.clear()
            tasks, began = [], time.perf_counter()
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                tasks.append(asyncio.create_task(one(client)))
            await asyncio.gather(*tasks)

    asyncio.run(all_of_them())
    return spent, failed


def saturation(bench: Bench) -> float:
    """Requests a second with 16 users, each of whom asks again at once."""

    async def ask() -> float:
        async with AsyncRecommender(bench.url, timeout_s=30.0) as client:
            ends = time.perf_counter() + 8
            count = 0

            async def user() -> None:
                nonlocal count
                while time.perf_counter() < ends:
                    await client.recommend(bench.history, top_k=10)
                    count += 1

            await asyncio.gather(*(user() for _ in range(16)))
            return count / 8

    return asyncio.run(ask())


@contextmanager
def changing(bench: Bench, size: int, every_s: float) -> Iterator[None]:
    """Commits of `size` changes go on meanwhile, from another process: this one measures."""
    spawn = multiprocessing.get_context("spawn")
    ends = spawn.Event()
    writer = spawn.Process(
        target=write, args=(bench.location, bench.bundle.space.size, bench.items, size, every_s, ends)
    )
    writer.start()
    time.sleep(3)  # it imports what it needs
    yield
    ends.set()
    writer.join()
    bench.version = bench.store.latest()


def write(location: str, codes: int, items: int, size: int, every_s: float, ends: Any) -> None:
    """Commit `size` random changes every so often, until `ends` is set."""
    os.nice(10)
    store, rng = CatalogStore.open(location), np.random.default_rng(time.time_ns())
    version = store.latest()
    while not ends.wait(every_s):
        version = store.commit(random_changes(rng, codes, items, size), version, "bench")


def random_changes(rng: np.random.Generator, codes: int, items: int, count: int) -> Changes:
    """Half are new items, the others get another popularity, and are taken away or put back."""
    fresh = count // 2
    ids = np.concatenate(
        [
            np.char.add(b"fresh-", rng.integers(0, 10**12, fresh).astype("S12")),
            np.char.add(b"live-", rng.integers(0, items, count - fresh).astype("S10")),
        ]
    )
    ids, at = np.unique(ids, return_index=True)
    new = at < fresh
    available = np.where(new, 1, rng.integers(0, 2, ids.size)).astype(np.int8)
    said = np.where(new, rng.integers(0, codes, ids.size), -1)
    return Changes(ids, np.zeros(ids.size, bool), said, rng.integers(0, 1000, ids.size), available)


def under_load(bench: Bench, rounds: int, seconds: float, size: int) -> dict[str, Any]:
    """p99 at half of the saturated throughput, steady and while changes come, in turn."""
    rate = saturation(bench) / 2
    runs: dict[str, list[dict[str, float]]] = {"steady": [], "changing": []}
    failed = 0
    for _ in range(rounds):
        for name in runs:
            with changing(bench, size, 1.0) if name == "changing" else nullcontext():
                spent, lost = users(bench, rate, seconds)
            runs[name].append(_quantiles(spent))
            failed += lost
            console.print(f"{name}: {runs[name][-1]}")
    ratio = median_ratio([run["p99"] for run in runs["changing"]], [run["p99"] for run in runs["steady"]])
    return {"rate": rate, "changes_a_second": size, "runs": runs, "failed": failed, "p99_ratio": ratio}


def many_commits(bench: Bench, commits: int) -> dict[str, Any]:
    """Memory, mapped files and disk before and after commits in a row, of which each item comes and goes."""

    def state() -> dict[str, float]:
        files = [path for path in bench.root.rglob("*") if path.is_file() and not path.is_symlink()]
        processes = _processes(bench.root)
        return {
            "disk": float(sum(path.stat().st_size for path in files)),
            "files": len(files),
            "mapped": sum(_mapped(pid, bench.root) for pid in processes),
            "private": sum(_private(pid) for pid in processes),
            "processes": len(processes),
        }

    def settled() -> dict[str, float]:
        while Status.load(bench.root).published < bench.version:
            time.sleep(0.1)
        time.sleep(8)
        return state()

    probe, keep = bench.probe(1, 0)[1], np.full(1, -1)
    gone = Changes(probe.item_ids, np.ones(1, bool), keep, keep, keep.astype(np.int8))
    for _ in range(30):  # warm
        bench.commit(probe)
        bench.commit(gone)
    before = settled()
    for _ in range(commits // 2):
        bench.commit(probe)
        bench.commit(gone)
    return {"commits": commits, "before": before, "after": settled()}


def rolled_back(bench: Bench, depth: int) -> dict[str, Any]:
    """How soon the content of `depth` versions ago shows."""
    with Recommender(bench.url, timeout_s=30.0) as client:
        name, probe = bench.probe(_draft(bench, client), 0)
        target = bench.version
        bench.commit(probe)
        for _ in range(depth - 1):
            bench.commit(bench.changes(10))
        while name not in client.recommend(bench.history, top_k=50).item_ids:
            pass
        began = time.perf_counter()
        bench.version = bench.store.rollback(target)
        committed = time.perf_counter()
        while name in client.recommend(bench.history, top_k=50).item_ids:
            pass
        return {"depth": depth, "command_s": committed - began, "shown_after_s": time.perf_counter() - committed}


def _processes(root: Path) -> list[int]:
    """Processes that have a file of the folder mapped."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _mapped(int(folder.name), root)]


def _mapped(pid: int, root: Path) -> int:
    try:
        text = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return 0
    return len({line.split(maxsplit=5)[5] for line in text.splitlines() if str(root.resolve()) in line})


def _private(pid: int) -> float:
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return 1024.0 * sum(int(rows[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{at}": float(np.percentile(values, at)) for at in (50, 95, 99)} if values else {}


def _items(bundle: Bundle, count: int) -> Iterator[Changes]:
    """The bundle's own items, then random ones up to `count`."""
    catalog, rng = bundle.catalog, np.random.default_rng(7)
    own = len(catalog)
    yield Changes(
        catalog.item_ids,
        np.zeros(own, bool),
        bundle.space.encode(catalog.sids),
        catalog.popularity,
        catalog.available.astype(np.int8),
    )
    for start in range(0, count - own, _BATCH):
        size = min(_BATCH, count - own - start)
        ids = np.char.add(b"live-", np.arange(start, start + size).astype("S10"))
        codes = rng.integers(0, bundle.space.size, size)
        sold = np.minimum(rng.zipf(1.5, size), 10**6)
        yield Changes(ids, np.zeros(size, bool), codes, sold, np.ones(size, np.int8))


def main(
    out: Annotated[Path, typer.Argument(help="Folder of bundles, the store and `live.json`.")],
    items: Annotated[int, typer.Option(min=30_000)] = 1_000_000,
    only: Annotated[str, typer.Option(help="Of shown, bulk, sustained, load, many, rollback; all by default.")] = "",
    threads: Annotated[int, typer.Option(help="Of the engine; 0 for one per core.")] = 1,
) -> None:
    """Serve a catalogue of random items, change it, and measure."""
    bundle = cell_bundle(CELL, "NEZHA", out / "bundles")
    location, root = out / f"store-{items}", out / "published"
    for folder in (location, root):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    CatalogStore.create(str(location), bundle.space, _items(bundle, items))
    created = time.perf_counter() - began
    began = time.perf_counter()
    deployment = Deployment(threads=threads, timeout_ms=5000)
    live = LiveCatalog(str(location), root)
    with serve_bundle(bundle.path, deployment, live, log_path=out / "live-triton.log") as server:
        started = time.perf_counter() - began
        store = CatalogStore.open(str(location), bundle.quantizer)
        history = [item_id.decode() for item_id in bundle.catalog.item_ids[:20].tolist()]
        bench = Bench(server.grpc_url, store, root, bundle, str(location), items - len(bundle.catalog), history)
        scenarios: dict[str, Callable[[], dict[str, Any]]] = {
            "shown": lambda: shown_after(bench, 40, 1),
            "bulk": lambda: shown_after(bench, 15, 10_000),
            "rollback": lambda: rolled_back(bench, 100),
            "load": lambda: under_load(bench, 3, 20.0, 100),
            "many": lambda: many_commits(bench, 1000),
            "sustained": lambda: sustained(bench, 10_000, 60.0),
        }
        path = out / RESULTS
        found = json.loads(path.read_text()) if path.exists() else {}
        settings = provenance(items=items, threads=threads, cell=CELL.name, load=os.getloadavg()[0])
        for name, scenario in scenarios.items():
            if only and name not in only.split(","):
                continue
            console.rule(name)
            found[f"{name}-{items}"] = scenario() | {"settings": settings}
            found[f"start-{items}"] = {"create_s": created, "start_s": started}
            path.write_text(json.dumps(found, indent=1) + "\n")
            console.print(json.dumps({k: v for k, v in found[f"{name}-{items}"].items() if k != "settings"})[:1500])


if __name__ == "__main__":
    typer.run(main)
