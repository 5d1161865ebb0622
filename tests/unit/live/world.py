"""A small catalogue, the same in plain Python objects, and a reader that follows as a server's follower does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from genrec.catalog import Columns, ResidualQuantizer, SemanticIdSpace
from genrec.live.changes import Changes
from genrec.live.store import CatalogStore

SPACE = SemanticIdSpace((4, 3, 5))
QUANTIZER = ResidualQuantizer(
    [np.random.default_rng(level).normal(size=(size, 2)).astype(np.float32) for level, size in enumerate(SPACE.levels)]
)
KINDS = {"brand": "string", "price": "number"}
Attributes = tuple[str | None, float | None]
NONE: Attributes = (None, None)
Item = tuple  # code, popularity, available, and attributes in a catalogue that has them
State = dict[str, Item]
ARROW = pa.schema(
    [
        ("item_id", pa.string()),
        ("operation", pa.string()),
        ("sid", pa.list_(pa.int32())),
        ("embedding", pa.list_(pa.float32())),
        ("available", pa.bool_()),
        ("popularity", pa.int64()),
        ("attributes", pa.string()),
    ]
)


def changes(*rows: tuple) -> Changes:
    """Changes of (id, code, popularity, available, removed); what is left out keeps."""
    full = [(*row, *(-1, -1, -1, False)[len(row) - 1 :]) for row in rows]
    ids, codes, popularity, available, removed = zip(*full, strict=True) if full else ([],) * 5
    return Changes(
        np.array([item_id.encode() for item_id in ids], np.bytes_ if ids else "S1"),
        np.array(removed, bool),
        np.array(codes, np.int64),
        np.array(popularity, np.int64),
        np.array(available, np.int8),
    )


def items(state: Mapping[str, Item]) -> Changes:
    made = changes(*((name, code, popularity, int(live)) for name, (code, popularity, live, *_) in state.items()))
    if all(len(item) == 3 for item in state.values()):
        return made
    return described(made, [item[3] for item in state.values()])


def described(made: Changes, said: Sequence[Attributes | None]) -> Changes:
    """Changes with attributes; None where they say nothing of them."""
    values = zip(*(NONE if one is None else one for one in said), strict=True)
    columns = Columns.of_values(KINDS, dict(zip(KINDS, values, strict=True)))
    return replace(made, columns=columns, described=np.array([one is not None for one in said]))


def applied(state: State, made: Changes) -> State:
    """`state` behind changes, one after the other."""
    state = dict(state)
    said = [*zip(*(column.tolist() for column in made.columns.values()), strict=True)] or [()] * len(made)
    rows = zip(made.item_ids, made.removed, made.codes, made.popularity, made.available, said, strict=True)
    for (item_id, removed, code, popularity, available, attributes), given in zip(rows, made.described, strict=True):
        name = item_id.decode()
        if removed:
            state.pop(name, None)
            continue
        had = state.get(name, (-1, 0, True))
        state[name] = (
            int(code) if code >= 0 else had[0],
            int(popularity) if popularity >= 0 else had[1],
            bool(available) if available >= 0 else had[2],
        )
        if made.columns:
            state[name] += (attributes if given else (*had, NONE)[3],)
        assert state[name][0] >= 0, f"{name} has no code"
    return state


def state_at(store: CatalogStore, version: int) -> State:
    """The state of a version as a server that starts there reads it."""
    base = store.base_version(version)
    state: State = {}
    for batch in store.read_base(version):
        assert not batch.removed.any() and batch.codes.min() >= 0 and batch.popularity.min() >= 0
        assert set(batch.available.tolist()) <= {0, 1}
        before = len(state)
        state = applied(state, batch)
        assert len(state) == before + len(batch), "an item is twice in a base"
    read = store.read_commits(base, version, lambda ids: np.array([one.decode() in state for one in ids], bool))
    assert read.blocked is None and read.version == version
    return applied(state, read.changes)


@dataclass
class Reader:
    """Follows a catalogue version by version, or by several at once."""

    store: CatalogStore
    version: int = 0
    state: State = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    blocked: tuple[int, str] | None = None

    def start(self) -> Reader:
        self.version = self.store.base_version(self.store.latest())
        self.state = {}
        for batch in self.store.read_base(self.store.version):
            self.state = applied(self.state, batch)
        return self

    def follow(self) -> Reader:
        newest = self.store.latest()
        read = self.store.read_commits(self.version, newest, self.knows)
        if read.blocked is not None and self.store.base_version(newest) >= read.blocked[0]:
            return self.start().follow()
        assert read.version == newest or read.blocked is not None
        self.state, self.version, self.blocked = applied(self.state, read.changes), read.version, read.blocked
        self.refused += [version for version, _ in read.refused]
        return self

    def knows(self, ids: np.ndarray) -> np.ndarray:
        return np.array([item_id.decode() in self.state for item_id in ids], bool)


def write_raw(location: Path | str, rows: Sequence[Mapping[str, Any]], **options: Any) -> int:
    """Append rows as another program does, without any check; gives the version."""
    names = sorted({name for row in rows for name in row} - set(ARROW.names))
    schema = pa.schema([*ARROW, *((name, pa.int64()) for name in names)])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    write_deltalake(str(location), table, mode="append", schema_mode="merge", **options)
    return DeltaTable(str(location), **{k: v for k, v in options.items() if k == "storage_options"}).version()


def new_store(location: Path, state: Mapping[str, Item], **options: Any) -> CatalogStore:
    CatalogStore.create(str(location), SPACE, [items(state)] if state else [], width=2, **options)
    return CatalogStore.open(str(location), QUANTIZER)


def data_files(location: Path, version: int) -> list[Path]:
    """Files that a commit added."""
    lines = entry_file(location, version).read_text().splitlines()
    return [location / json.loads(line)["add"]["path"] for line in lines if '"add"' in line]


def entry_file(location: Path, version: int) -> Path:
    return location / "_delta_log" / f"{version:020}.json"
