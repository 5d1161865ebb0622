"""The index of a live catalogue against other structures, in turn: lookups, bytes, opening, private memory.

python -m perf.catalog.index build/catalog-bench --items 10000000

References: a Python dict, `pandas.Index`, a sorted array with `numpy.searchsorted`, and point reads of LMDB and
RocksDB, where they are installed (`pip install pandas lmdb rocksdict`).
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.catalog import CatalogBase, CatalogVersion, PrefixTable, SemanticIdSpace
from genrec.live.changes import Changes
from genrec.live.fold import Fold
from genrec.reporting.machine import provenance
from genrec.reporting.timing import each_ms, in_turn

CODES = 512  # looked up at once: the beams of the widest search
ROUNDS, CALLS = 15, 20
console = Console(stderr=True, soft_wrap=True)

_OPEN = """
import sys, time, pathlib, numpy as np
from genrec.catalog import CatalogBase, SemanticIdSpace
folder, levels = sys.argv[1], tuple(map(int, sys.argv[2].split(",")))
def private():
    rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if ":" in line and "kB" in line)
    return sum(int(rows[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
before, began = private(), time.perf_counter()
base = CatalogBase.load(pathlib.Path(folder), SemanticIdSpace(levels))
opened = time.perf_counter() - began
rng = np.random.default_rng(1)
for _ in range(300):
    rows = base.first_rows(rng.integers(0, base.space.size, 512))
    base.popularity[rng.integers(0, len(base), 512)], base.codes[rng.integers(0, len(base), 512)]
print(opened, private() - before)
"""


def make(folder: Path, space: SemanticIdSpace, items: int) -> CatalogBase:
    """A base of random codes, in `folder`."""
    rng = np.random.default_rng(0)
    ids = np.char.add(b"item-", np.arange(items).astype("S10"))
    codes = rng.integers(0, space.size, items)
    sold = np.minimum(rng.zipf(1.5, items), 10**6)
    CatalogBase.build(space, ids, codes, sold, np.ones(items, bool)).save(folder)
    return CatalogBase.load(folder, space)


def changed(base: CatalogBase, touched: int) -> CatalogVersion:
    """`base` with `touched` items new, moved or removed."""
    rng = np.random.default_rng(2)
    rows = rng.choice(len(base), touched // 2, replace=False)
    fresh = np.char.add(b"new-", np.arange(touched - rows.size).astype("S10"))
    ids = np.concatenate([base.item_ids[rows], fresh])
    keep = np.full(ids.size, -1)
    fold = Fold(CatalogVersion(0, base), base.live)
    removed = np.arange(ids.size) % 5 == 0
    fold.apply(Changes(ids, removed, rng.integers(0, base.space.size, ids.size), keep, keep.astype(np.int8)))
    return CatalogVersion(1, base, fold.delta(4096))


def references(codes: np.ndarray, scratch: Path) -> Iterator[tuple[str, Callable[[np.ndarray], object]]]:
    """Lookups of a code's row by other means, by name."""
    rows = np.arange(codes.size)
    if codes.size <= 20_000_000:
        of_code = dict(zip(codes.tolist(), rows.tolist(), strict=True))
        yield "Python dict", lambda wanted: [of_code.get(code, -1) for code in wanted.tolist()]
    yield "sorted array, numpy.searchsorted", lambda wanted: np.searchsorted(codes, wanted)
    if (pandas := _installed("pandas")) is not None and codes.size <= 20_000_000:
        index = pandas.Index(codes)
        index.get_indexer(codes[:1])  # makes its hash table
        yield "pandas.Index", index.get_indexer
    keys = [int(code).to_bytes(8, "big") for code in codes.tolist()] if codes.size <= 20_000_000 else []
    if keys and (lmdb := _installed("lmdb")) is not None:
        with lmdb.open(str(scratch / "lmdb"), map_size=1 << 36, sync=False) as environment:
            with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti([(key, b"\0" * 4) for key in keys], append=True)
            with environment.begin(buffers=True) as reading:
                yield "LMDB", lambda wanted: [reading.get(int(code).to_bytes(8, "big")) for code in wanted.tolist()]
    if keys and (rocksdict := _installed("rocksdict")) is not None:
        options = rocksdict.Options(raw_mode=True)
        database = rocksdict.Rdict(str(scratch / "rocks"), options)
        for start in range(0, len(keys), 1_000_000):
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key in keys[start : start + 1_000_000]:
                batch.put(key, b"\0" * 4)
            database.write(batch)
        yield "RocksDB", lambda wanted: database.get([int(code).to_bytes(8, "big") for code in wanted.tolist()])
        database.close()


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def lookups(base: CatalogBase, touched: int, scratch: Path) -> dict[str, list[float]]:
    """Milliseconds of a lookup of 512 codes, of which nine of ten exist, by structure; in turn."""
    rng = np.random.default_rng(3)
    asked = [_mixed(base, rng) for _ in range(200)]
    version = changed(base, touched)
    calls: dict[str, Callable[[np.ndarray], object]] = {
        "this index": base.first_rows,
        f"this index with {touched:,} items changed": version.buckets_of,
    }
    found: dict[str, list[float]] = {}
    with_one = references(np.unique(base.codes[: base.live]).astype(np.int64), scratch)
    for name, call in with_one:
        console.print(name)
        group = calls | {name: call}

        def timed(one: Callable[[np.ndarray], object]) -> list[float]:
            return each_ms(lambda at: one(asked[at % len(asked)]), CALLS)

        for each, times in in_turn(group, ROUNDS, timed).items():
            found.setdefault(each, []).extend(chain.from_iterable(times))
    return found


def _mixed(base: CatalogBase, rng: np.random.Generator) -> np.ndarray:
    there = base.codes[rng.integers(0, base.live, CODES * 9 // 10)].astype(np.int64)
    return rng.permutation(np.concatenate([there, rng.integers(0, base.space.size, CODES - there.size)]))


def sizes(folder: Path, base: CatalogBase) -> dict[str, float]:
    """Bytes on disk by part, seconds to open, bytes of memory that a further process has for itself."""
    names = {
        "code and row": ("codes", "code_keys", "code_rows"),
        "ids": ("item_ids", "id_keys", "id_rows"),
        "popularity": ("popularity", "popular_rows"),
    }
    found = {
        part: float(sum((folder / f"{name}.npy").stat().st_size for name in files)) for part, files in names.items()
    }
    levels = ",".join(map(str, base.space.levels))
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(folder), levels], capture_output=True, text=True, check=True
    )
    opened, private = map(float, done.stdout.split())
    return found | {"opening_s": opened, "private": 1024 * private}


def masks(space: SemanticIdSpace, base: CatalogBase) -> dict[str, float]:
    """Bytes of the masks, and seconds to build them and to change 10,000 codes in place."""
    codes = base.codes[: base.live].astype(np.int64)
    began = time.perf_counter()
    table = PrefixTable.build(space, codes)
    built = time.perf_counter() - began
    fresh = np.random.default_rng(4).integers(0, space.size, 10_000)
    began = time.perf_counter()
    table.add(fresh)
    added = time.perf_counter() - began
    began = time.perf_counter()
    table.discard(fresh)
    spent = time.perf_counter() - began
    return {
        "bytes": float(sum(array.nbytes for array in (*table.keys, *table.bits))),
        "build_s": built,
        "add_s": added,
        "discard_s": spent,
    }


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the results, `index-ITEMS.json`.")],
    items: Annotated[int, typer.Option(min=1000)] = 10_000_000,
    levels: Annotated[str, typer.Option(help="Codes per level.")] = "256,256,256,256",
    touched: Annotated[int, typer.Option(min=10, help="Items changed since the base.")] = 20_000,
    keep: Annotated[bool, typer.Option(help="Keep the files of the index.")] = False,
) -> None:
    """Build an index of random semantic IDs, and measure it."""
    space = SemanticIdSpace(tuple(map(int, levels.split(","))))
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f"index-{items}"
    began = time.perf_counter()
    base = make(folder, space, items)
    built = time.perf_counter() - began
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        times = lookups(base, touched, Path(scratch))
    found = {
        "settings": provenance(items=items, levels=levels, touched=touched, codes=CODES),
        "lookup_ms": {
            name: {f"p{at}": float(np.percentile(spent, at)) for at in (50, 95, 99)} for name, spent in times.items()
        },
        "size": sizes(folder, base) | {"build_s": built},
        "masks": masks(space, base),
    }
    (out / f"index-{items}.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print_json(json.dumps(found))
    if not keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
