"""What a follower's local base takes to make, in a process of its own: seconds, memory of its own, disk besides.

python -m perf.catalog.base build/catalog-bench --items 10000000

Random semantic IDs; popularities of a few items are large, most are alike. The items come as a store's batches do, and
are made on the way, which takes `items_s` of the time.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.catalog import SemanticIdSpace
from genrec.catalog.published import BASES
from genrec.live.bases import base_of_batches
from genrec.live.changes import Changes
from genrec.reporting.machine import provenance

_BATCH = 1 << 18
_DIGITS = 9
console = Console(stderr=True, soft_wrap=True)


def batches(space: SemanticIdSpace, items: int) -> Iterator[Changes]:
    """Random items with ids of 14 bytes; one in 20 is not available."""
    rng = np.random.default_rng(0)
    tens = 10 ** np.arange(_DIGITS - 1, -1, -1)
    for start in range(0, items, _BATCH):
        numbers = np.arange(start, min(start + _BATCH, items))
        count = numbers.size
        ids = np.empty((count, 5 + _DIGITS), np.uint8)
        ids[:, :5] = np.frombuffer(b"item-", np.uint8)
        ids[:, 5:] = numbers[:, None] // tens % 10 + ord("0")
        yield Changes(
            ids.view(f"S{ids.shape[1]}").ravel(),
            np.zeros(count, bool),
            rng.integers(0, space.size, count),
            np.minimum(rng.zipf(1.5, count), 10**6),
            (rng.random(count) >= 0.05).astype(np.int8),
        )


def make(root: Path, levels: tuple[int, ...], items: int, seconds: Any) -> None:
    """Make a base in `root`."""
    space = SemanticIdSpace(levels)
    spent = 0.0

    def timed() -> Iterator[Changes]:
        nonlocal spent
        rest = batches(space, items)
        while True:
            began = time.perf_counter()
            batch = next(rest, None)
            spent += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    began = time.perf_counter()
    base_of_batches(root, "bench", space, 0, timed())
    seconds.put((time.perf_counter() - began, spent, time.process_time()))


def watched(process: Any, root: Path) -> dict[str, float]:
    """The largest anonymous memory of a process, sampled every 20 ms, and the largest disk use, while it runs."""
    process.start()
    anonymous = disk = 0
    looked = 0.0
    while process.is_alive():
        status = Path(f"/proc/{process.pid}/status").read_text()
        anonymous = max(anonymous, *(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line), 0)
        if time.monotonic() - looked > 0.5:
            disk, looked = max(disk, used(root)), time.monotonic()
        process.join(0.02)
    if process.exitcode:
        raise RuntimeError(f"making the base ended with status {process.exitcode}")
    return {"anonymous_mb": 1024 * anonymous / 1e6, "disk_mb": disk / 1e6, "base_mb": used(root) / 1e6}


def used(folder: Path) -> int:
    """Bytes of the files below a folder, of which some may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 512 * path.stat().st_blocks
        except OSError:
            continue
    return total


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the base, removed again, and of `base-ITEMS.json`.")],
    items: Annotated[int, typer.Option(min=1000)] = 10_000_000,
    levels: Annotated[str, typer.Option(help="Codes per level.")] = "256,256,256,256",
) -> None:
    """Make a base of random items in a process of its own, and watch it."""
    root = out / "base"
    shutil.rmtree(root, ignore_errors=True)
    (root / BASES).mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    seconds = spawn.Queue()
    try:
        process = spawn.Process(target=make, args=(root, tuple(map(int, levels.split(","))), items, seconds))
        found = watched(process, root)
        found["total_s"], found["items_s"], found["processor_s"] = seconds.get()
    finally:
        shutil.rmtree(root)
    found |= {"settings": provenance(items=items, levels=levels)}  # type: ignore[dict-item]
    (out / f"base-{items}.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print_json(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
