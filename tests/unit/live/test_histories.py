"""Random histories of a live catalogue against the same in Python objects."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.live.store import CatalogStore
from tests.unit.live.world import KINDS, NONE, QUANTIZER, SPACE, Reader, State, new_store, state_at, write_raw

NAMES = [f"i{number}" for number in range(8)]
SID = st.tuples(*(st.integers(0, size - 1) for size in SPACE.levels)).map(list)
EMBEDDING = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2)
UPSERT = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from(NAMES),
        "operation": st.just("upsert"),
        "sid": st.none() | SID,
        "embedding": st.none() | EMBEDDING,
        "available": st.none() | st.booleans(),
        "popularity": st.none() | st.integers(0, 9),
        "attributes": st.none()
        | st.sampled_from(
            ["{}", '{"brand": "a"}', '{"price": 2, "x": [{}]}', ' {"brand": "b\\u0041",\n"price": -1e2, "price": null}']
        ),
    }
)
REMOVE = st.fixed_dictionaries({"item_id": st.sampled_from(NAMES), "operation": st.just("remove")})
# One row that no commit may have.
WRONG = st.sampled_from(
    [
        {"item_id": "", "operation": "upsert", "sid": [0, 0, 0]},
        {"item_id": None, "operation": "upsert", "sid": [0, 0, 0]},
        {"item_id": "x" * 129, "operation": "upsert", "sid": [0, 0, 0]},
        {"item_id": "x\0", "operation": "upsert", "sid": [0, 0, 0]},
        {"item_id": "x", "operation": "insert", "sid": [0, 0, 0]},
        {"item_id": "x", "operation": None, "sid": [0, 0, 0]},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0]},
        {"item_id": "x", "operation": "upsert", "sid": []},
        {"item_id": "x", "operation": "upsert", "sid": [0, 3, 0]},
        {"item_id": "x", "operation": "upsert", "sid": [0, -1, 0]},
        {"item_id": "x", "operation": "upsert", "sid": [0, None, 0]},
        {"item_id": "x", "operation": "upsert", "embedding": [0.0]},
        {"item_id": "x", "operation": "upsert", "embedding": [0.0, float("nan")]},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "embedding": [0.0, float("inf")]},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "popularity": -1},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "price": 3},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "attributes": ""},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "attributes": "[]"},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "attributes": '{"brand": 3}'},
        {"item_id": "x", "operation": "upsert", "sid": [0, 0, 0], "attributes": '{"price": "3"}'},
    ]
)
ROWS = st.lists(UPSERT | UPSERT | REMOVE, max_size=5)
STEP = st.one_of(
    ROWS.map(lambda rows: ("commit", rows)),
    ROWS.map(lambda rows: ("commit", rows)),
    st.tuples(ROWS, WRONG).map(lambda pair: ("commit", [*pair[0], pair[1]])),
    st.integers(0, 30).map(lambda back: ("rollback", back)),
    st.integers(1, 6).map(lambda keep: ("compact", keep)),
    st.just(("delete", None)),
    st.just(("follow", None)),
)


def is_valid(rows: list[Mapping[str, Any]], state: State) -> bool:
    """Whether a commit counts, said anew."""
    names = [row["item_id"] for row in rows]
    if len(set(names)) < len(names):
        return False
    return all(
        name in NAMES and (row["operation"] == "remove" or name in state or row.get("sid") or row.get("embedding"))
        for name, row in zip(names, rows, strict=True)
    )


def code_of(row: Mapping[str, Any]) -> int | None:
    if row.get("sid") is not None:
        return int(np.asarray(row["sid"], np.int64) @ SPACE.radix)
    if row.get("embedding") is not None:
        return int(SPACE.encode(QUANTIZER.encode(np.array([row["embedding"]], np.float32)))[0])
    return None


def committed(state: State, rows: list[Mapping[str, Any]]) -> State:
    if not is_valid(rows, state):
        return state
    state = dict(state)
    for row in rows:
        if row["operation"] == "remove":
            state.pop(row["item_id"], None)
            continue
        had = state.get(row["item_id"], (-1, 0, True, NONE))
        attributes = row.get("attributes") and json.loads(row["attributes"])
        said = (code_of(row), row.get("popularity"), row.get("available"), None)
        if attributes is not None:
            said = (*said[:3], (attributes.get("brand"), attributes.get("price")))
        state[row["item_id"]] = tuple(old if new is None else new for old, new in zip(had, said, strict=True))
    return state


@pytest.mark.training  # it takes seconds
@settings(max_examples=40)
@given(steps=st.lists(STEP, min_size=1, max_size=14), every=st.booleans())
def test_a_history_is_what_it_is_in_python(steps: list[tuple], every: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        location = Path(folder) / "catalogue"
        state: State = {"i0": (1, 5, True, ("a", 1.5)), "i1": (2, 0, False, NONE)}
        store = new_store(location, state, kinds=KINDS)
        states, kept = [state], 0
        eager, lazy = Reader(CatalogStore.open(str(location), QUANTIZER)).start(), Reader(store).start()
        for name, what in steps:
            newest = len(states) - 1
            if name == "commit":
                assert write_raw(location, what) == newest + 1
                states.append(committed(states[-1], what))
            elif name == "rollback":
                version = max(kept, newest - what)
                assert store.rollback(version) == newest + 1
                states.append(states[version])
            elif name == "compact":
                before = store.latest()
                after = store.compact(keep_versions=what)
                assert after - before in (0, 1)
                states += [states[-1]] * (after - before)
                kept = max(kept, after - what + 1)
            elif name == "delete":
                DeltaTable(str(location)).delete("item_id = 'i0'")
                states += [states[-1]] * (DeltaTable(str(location)).version() - newest)
            elif name == "follow":
                lazy.follow()
                assert lazy.state == states[-1]
            if every:
                eager.follow()
                assert eager.state == states[-1] and eager.version == len(states) - 1
        eager.follow(), lazy.follow()
        assert eager.state == lazy.state == states[-1]
        fresh = CatalogStore.open(str(location), QUANTIZER)
        for version in range(kept, len(states)):
            assert state_at(fresh, version) == states[version], version
            asked = fresh.lookup(pa.array(NAMES, pa.large_string()), version)
            codes = dict(zip(asked["item_id"].to_pylist(), fresh.codes(asked).tolist(), strict=True))
            assert codes == {item: code for item, (code, *_) in states[version].items()}
            refused = fresh.read_commits(fresh.base_version(version), version).refused
            assert all(why for _, why in refused)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_store_without_a_quantiser_leaves_embeddings_for_those_who_have_one(tmp_path: Path, compacted: bool) -> None:
    new_store(tmp_path / "c", {"a": (1, 0, True)})
    rows = [{"item_id": "b", "operation": "upsert", "embedding": [0.5, -0.5], "attributes": '{"t": 1}'}]
    write_raw(tmp_path / "c", rows)
    bare = CatalogStore.open(str(tmp_path / "c"))
    if compacted:
        bare.compact()
    with pytest.raises(ValueError, match=r"item 'b' and 0 more have an embedding and no sid.*--bundle"):
        state_at(bare, bare.latest())
    able = CatalogStore.open(str(tmp_path / "c"), QUANTIZER)
    assert state_at(able, able.latest())["b"] == (code_of(rows[0]), 0, True)
    assert able.compact() == able.version
    write_raw(tmp_path / "c", [{"item_id": "a", "operation": "upsert", "popularity": 4}])
    able.compact()
    assert state_at(bare, bare.latest()) == {"a": (1, 4, True), "b": (code_of(rows[0]), 0, True)}
    kept = able.lookup(pa.array(["b"], pa.large_string()), able.version).to_pylist()
    assert kept[0]["attributes"] == '{"t": 1}' and kept[0]["embedding"] == [0.5, -0.5]


def test_a_rollback_brings_attributes_back(tmp_path: Path) -> None:
    store = new_store(tmp_path / "c", {"a": (1, 0, True), "b": (1, 0, True)})
    write_raw(tmp_path / "c", [{"item_id": "b", "operation": "upsert", "attributes": '{"t": 1}'}])
    write_raw(tmp_path / "c", [{"item_id": n, "operation": "upsert", "attributes": '{"t": 2}'} for n in "ab"])
    write_raw(tmp_path / "c", [{"item_id": "b", "operation": "remove"}])
    store.rollback(1)
    found = store.lookup(pa.array(["a", "b"], pa.large_string()), store.version).to_pylist()
    assert {row["item_id"]: row["attributes"] for row in found} == {"a": "{}", "b": '{"t": 1}'}
