"""A live catalogue of somebody hostile: log entries, rows, attributes, a whole store, and a published folder."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genrec.catalog import CatalogBase, Columns, PrefixTable, SemanticIdSpace
from genrec.catalog.published import BASES, MASKS, RECORD, VERSIONS, Record, load_version
from genrec.catalog.version import CatalogVersion, Delta
from genrec.errors import CatalogStoreError
from genrec.live.attributes import parse
from genrec.live.delta_log import DeltaLog, Unreadable
from genrec.live.rows import Refused, changes_of, conform, merged, problems
from genrec.live.store import CatalogStore
from tests.fuzz.bundles import npy
from tests.fuzz.hostile import INTEGERS, TEXTS, mutated, scalar, tampered, text, value, written
from tests.fuzz.requests import KINDS
from tests.fuzz.runner import Feed, Finding, Target
from tests.unit.live.world import SPACE, changes, items, new_store


class OneFile:
    """A store's files, of which every one holds the same bytes."""

    data = b""

    def open_input_stream(self, path: str) -> io.BytesIO:
        return io.BytesIO(self.data)


@contextmanager
def entries(scratch: Path) -> Iterator[Feed]:
    log, files = DeltaLog(str(scratch)), OneFile()
    log.files = files  # type: ignore[assignment]
    good: list[Any] = [
        {"commitInfo": {"timestamp": 1, "operation": "WRITE", "kind": "apply", "message": "a", "files": 1}},
        {"txn": {"appId": "genrec-base", "version": 3}},
        {"txn": {"appId": "genrec-base-state", "version": 3}},
        {"add": {"path": "a.parquet", "size": 10, "dataChange": True, "stats": '{"numRecords": 2}'}},
        {"remove": {"path": "b.parquet", "dataChange": False}},
    ]

    def feed(rng: random.Random) -> None:
        lines = [written(rng, mutated(rng, line)) if rng.random() < 0.4 else json.dumps(line).encode() for line in good]
        files.data = b"\n".join(rng.sample(lines, rng.randrange(len(lines) + 1)))
        entry = log.entry(3)
        assert entry.rows is None or entry.rows or not entry.rows  # it is worked out
        for file in entry.files:
            if file.path.startswith("/") or ".." in file.path.split("/") or "://" in file.path:
                raise Finding(f"a file outside the store: {file.path!r}")

    yield feed


def column(rng: random.Random, name: str, size: int) -> pa.Array:
    """Values of a column, of any type."""
    good: dict[str, Any] = {
        "item_id": [f"item-{at}" for at in range(size)],
        "operation": ["upsert"] * size,
        "sid": [[1, 1, 1]] * size,
        "embedding": [[0.5, 0.5]] * size,
        "available": [True] * size,
        "popularity": [1] * size,
        "attributes": ['{"price": 1}'] * size,
    }
    kind = rng.randrange(3)
    values = list(good.get(name, [1] * size))
    if kind and size:
        other: Any = rng.choice((None, scalar(rng), [scalar(rng)], [rng.choice(INTEGERS[:12])] * 3, value(rng)))
        values = [other] * size if kind == 1 else [*values[:-1], other]
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.nulls(size)


@contextmanager
def rows(scratch: Path) -> Iterator[Feed]:
    names = ("item_id", "operation", "sid", "embedding", "available", "popularity", "attributes")

    def feed(rng: random.Random) -> None:
        size = rng.choice((0, 1, 2, 5))
        there = [name for name in names if rng.random() < 0.9] + [text(rng)] * (rng.random() < 0.05)
        columns = [column(rng, name, size) for name in there]
        try:
            table = pa.table(columns, there)
        except (pa.ArrowException, UnicodeEncodeError):
            return
        found = conform(table)
        bad = np.zeros(found.num_rows, bool)
        for wrong, tell in problems(found, np.zeros(found.num_rows, np.int64), SPACE, 2, KINDS):
            bad |= wrong
            for at in np.flatnonzero(wrong):
                if not tell(int(at)):
                    raise Finding("a problem without words")
        good = found.filter(pa.array(~bad))
        if "sid" in there:
            merged(good)
            coded = good.filter(good["sid"].is_valid())
            changes_of(coded, SPACE, KINDS)

    yield feed


@contextmanager
def attributes(scratch: Path) -> Iterator[Feed]:
    good = {"category": "a", "tags": ["x", "y"], "price": 1.5, "in_stock": True, "added": "2026-01-01T00:00:00Z"}

    def feed(rng: random.Random) -> None:
        texts = []
        for _ in range(rng.choice((1, 1, 5))):
            told = written(rng, mutated(rng, good, tuple(KINDS))).decode("utf-8", "replace")
            texts.append(None if rng.random() < 0.05 else told)
        found = parse(pa.array(texts, pa.large_string()), KINDS)
        if len(found.given) != len(texts) or any(not words for words in found.wrong.values()):
            raise Finding(f"not one answer for each text: {texts}")
        for column in found.columns.values():
            column.tolist()

    yield feed


@contextmanager
def stores(scratch: Path) -> Iterator[Feed]:
    good = scratch / "good"
    made = new_store(good, {f"item-{at}": (at % SPACE.size, at, True) for at in range(20)})
    made.commit(changes(("new", 3, 5)), 0, "one more")
    made.commit(changes(("item-1", -1, 9), ("item-2", -1, -1, -1, True)), 1, "changes")
    files = {path.relative_to(good).as_posix(): path.read_bytes() for path in good.rglob("*") if path.is_file()}
    secret = scratch / "outside" / "rows.parquet"
    shutil.copy(next(good.glob("apply-*.parquet")), secret)
    folder = scratch / "store"

    def feed(rng: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        name = rng.choice(list(files))
        data = files[name]
        if name.endswith(".json") and rng.random() < 0.8:
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            changed = json.loads(lines[at])
            if "add" in changed and rng.random() < 0.3:
                changed["add"]["path"] = rng.choice(
                    ("../outside/rows.parquet", str(secret), f"file://{secret}", "%2e%2e/outside/rows.parquet")
                )
                changed["add"]["size"] = secret.stat().st_size
            else:
                changed = mutated(rng, changed)
            lines[at] = written(rng, changed)
            data = b"\n".join(lines)
        else:
            data = tampered(rng, data)
        (folder / name).write_bytes(data)
        store = CatalogStore.open(str(folder), None)
        newest = store.latest()
        base = store.base_version(newest)
        known = {name for part in store.read_base(newest) for name in part.item_ids.tolist()}
        store.read_commits(base, newest, lambda ids: np.array([one in known for one in ids.tolist()], bool))

    yield feed


@contextmanager
def published(scratch: Path) -> Iterator[Feed]:
    root, space = scratch / "published", SemanticIdSpace((4, 3, 5))
    state = items({f"item-{at}": (at % space.size, at, True) for at in range(20)})
    kinds = {"brand": "string", "tags": "strings", "price": "number"}
    columns = Columns.of_values(kinds, {"brand": ["a", "b"] * 10, "tags": [["x"], []] * 10, "price": [1.0] * 20})
    base = CatalogBase.build(space, state.item_ids, state.codes, state.popularity, state.available > 0, columns)
    base.save(root / BASES / "0.0")
    PrefixTable.build(space, state.codes).save(root / BASES / "0.0" / MASKS)
    touched = np.arange(3)
    Delta.build(
        CatalogVersion(0, base),
        state.item_ids[touched],
        np.full(3, 2),
        state.codes[touched],
        state.popularity[touched],
        columns.take(touched),
        np.ones(3, np.int64),
        50,
    ).save(root / VERSIONS / "1")
    Record(1, "0.0", "", 20, 1.0, 1.0).save(root / VERSIONS / "1")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (scratch / "outside" / "codes.npy").write_bytes(files[f"{BASES}/0.0/codes.npy"])

    def feed(rng: random.Random) -> None:
        name = rng.choice(list(files))
        data = files[name]
        if name.endswith(".npy"):
            data = npy(rng, data)
        elif name.endswith(RECORD) and rng.random() < 0.3:
            data = json.dumps(
                json.loads(data) | {"base": rng.choice(("../../outside", str(scratch / "outside"), *TEXTS[:12]))}
            ).encode()
        else:
            data = written(rng, mutated(rng, json.loads(data)))
        (root / name).write_bytes(data)
        try:
            load_version(root, 1, space)
            PrefixTable.load(root / BASES / "0.0" / MASKS, space)
        finally:
            (root / name).write_bytes(files[name])

    yield feed


TARGETS = [
    Target("log-entry", entries, (Unreadable,), share=8, says=r"^log entry _delta_log/\d+\.json: ."),
    Target("rows", rows, (Refused,), share=3, says=r"^column "),
    Target("attributes", attributes, (), share=4),
    Target("store", stores, (CatalogStoreError,), share=0.1, says=r"store: .|version \d+"),
    Target("published", published, (ValueError, OSError), share=2, says=r"\.(npy|json)\b"),
]
