"""What the live catalogue's store takes: making it, commits, what a follower reads, inspection, rollback, compaction.

python -m perf.catalog.store build/catalog-bench --sizes 1000000,10000000
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.catalog import SemanticIdSpace
from genrec.live.changes import Changes
from genrec.live.inspection import inspect_catalog
from genrec.live.store import CatalogStore
from genrec.reporting.machine import provenance

RESULTS = "live-store.json"
SPACE = SemanticIdSpace((256, 256, 256, 256))
_BATCH = 1 << 18
console = Console(stderr=True, soft_wrap=True)


def some(numbers: np.ndarray, rng: np.random.Generator) -> Changes:
    """Items of these numbers with random semantic IDs."""
    n = len(numbers)
    return Changes(
        np.char.add(b"item-", numbers.astype("S10")),
        np.zeros(n, bool),
        rng.integers(0, SPACE.size, n),
        rng.integers(0, 1000, n),
        np.ones(n, np.int8),
    )


def catalogue(count: int, rng: np.random.Generator) -> Iterator[Changes]:
    for start in range(0, count, _BATCH):
        yield some(np.arange(start, min(start + _BATCH, count)), rng)


def batch_of(count: int, changes: int, rng: np.random.Generator) -> Changes:
    """A commit of a shop's day: a tenth new, a tenth removed, the rest become available or not."""
    numbers = rng.choice(count, changes, replace=False)
    tenth = changes // 10
    made = some(numbers, rng)
    made.item_ids[:tenth] = np.char.add(b"new-", rng.integers(0, 10**9, tenth).astype("S10"))
    made.removed[tenth : 2 * tenth] = True
    made.codes[tenth:] = made.popularity[tenth:] = -1
    made.available[2 * tenth :] = rng.integers(0, 2, changes - 2 * tenth)
    return made.last_of_each()


def everything(ids: np.ndarray) -> np.ndarray:
    """As a follower that knows all items."""
    return np.ones(len(ids), bool)


def measure(location: Path, count: int, changes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, by its name."""
    spent: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        found = call(*arguments)
        spent.setdefault(name, []).append(time.perf_counter() - began)
        return found

    def read_through(reader: CatalogStore) -> int:
        return sum(len(batch) for batch in reader.read_base(0))

    timed("init", CatalogStore.create, str(location), SPACE, catalogue(count, rng))
    writer, reader = (timed("open", CatalogStore.open, str(location)) for _ in range(2))
    timed("read the base", read_through, reader)
    for _ in range(rounds):
        after = writer.version
        timed("commit", writer.commit, batch_of(count, changes, rng), after, "measured")
        newest = timed("poll", reader.latest)
        timed("read the commit", reader.read_commits, after, newest, everything)
    timed("poll, nothing new", reader.latest)
    timed(f"read {rounds} commits at once", reader.read_commits, 0, writer.version, everything)
    timed("inspect", inspect_catalog, reader, writer.version)
    for back in (1, rounds):
        timed(f"rollback over {back}", writer.rollback, writer.version - back)
    timed("compact", writer.compact)
    return spent


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the catalogues, removed again, and of `live-store.json`.")],
    sizes: Annotated[str, typer.Option(help="Items, comma-separated.")] = "1000000,10000000",
    changes: Annotated[int, typer.Option(min=10, help="Of one commit.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Commits.")] = 20,
) -> None:
    """Every step alone, in one process, on a local folder."""
    runs = {}
    for items in map(int, sizes.split(",")):
        location = out / f"live-store-{items}"
        shutil.rmtree(location, ignore_errors=True)
        try:
            runs[str(items)] = measure(location, items, changes, rounds)
            size = sum(path.stat().st_size for path in location.rglob("*") if path.is_file())
        finally:
            shutil.rmtree(location, ignore_errors=True)
        for name, spent in runs[str(items)].items():
            p50, p95 = statistics.median(spent), float(np.quantile(spent, 0.95))
            console.print(f"{items} items: {name}: p50 {1e3 * p50:.1f} ms, p95 {1e3 * p95:.1f} ms of {len(spent)}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        console.print(f"{items} items: {size >> 20} MiB at the end; the process took {peak} MiB at most")
    settings = provenance(changes=changes, rounds=rounds, levels=SPACE.levels)
    (out / RESULTS).write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
