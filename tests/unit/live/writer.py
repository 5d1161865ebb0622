"""A process that writes to a catalogue, and may be killed while it does.

python -m tests.unit.live.writer LOCATION commits COUNT: says "ready", waits for a line, and then writes versions one
after the other, as fast as it can. Each gives all of its 40 items the popularity that is its version. A lost race is
told to standard output, and tried again.
python -m tests.unit.live.writer LOCATION ACTION STEP: one action, killed at a step; prints "done" if it has fewer.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
from deltalake import DeltaTable

from genrec.errors import CatalogConflict
from genrec.live.delta_log import DeltaLog
from genrec.live.store import CatalogStore
from tests.unit.live.world import QUANTIZER, SPACE, changes, items

WIDE = 40


def of_version(version: int) -> Any:
    return changes(*((f"i{number}", number % SPACE.size, version, 1) for number in range(WIDE)))


def kill_at(step: int) -> None:
    """Kill this process before or behind a touch of the store that changes something: two steps each."""
    steps = itertools.count()

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def touch(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            done = call(*args, **options)
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return touch

    pq.ParquetWriter.write_table = deadly(pq.ParquetWriter.write_table)
    pq.ParquetWriter.close = deadly(pq.ParquetWriter.close)
    for name in ("create_write_transaction", "create_checkpoint"):
        setattr(DeltaTable, name, deadly(getattr(DeltaTable, name)))
    made = DeltaLog.files.func  # type: ignore[attr-defined]

    def files(log: DeltaLog) -> Any:
        class Deadly:
            def __init__(self, real: Any) -> None:
                self.real = real

            def __getattr__(self, name: str) -> Any:
                found = getattr(self.real, name)
                return deadly(found) if name == "delete_file" else found

        return Deadly(made(log))

    DeltaLog.files = property(files)  # type: ignore[assignment, method-assign]
    import genrec.live.delta_log as module

    module.create_table_with_add_actions = deadly(module.create_table_with_add_actions)


def main(location: str, action: str, number: int) -> None:
    if action == "commits":
        store = CatalogStore.open(location, QUANTIZER)
        print("ready", flush=True)
        sys.stdin.readline()
        while number:
            newest = store.latest()
            try:
                store.commit(of_version(newest + 1), newest, f"by {os.getpid()}")
                number -= 1
            except CatalogConflict:
                print("conflict", flush=True)
        return
    kill_at(number)
    if action == "create":
        CatalogStore.create(location, SPACE, [items({"a": (1, 0, True)})], width=2)
    else:
        store = CatalogStore.open(location, QUANTIZER)
        newest = store.latest()
        if action == "commit":
            store.commit(of_version(newest + 1), newest, "")
        elif action == "compact":
            store.compact(keep_versions=2)
        else:
            store.rollback(4)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
