"""Attributes on their way from a store to what the steps map, against a dict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genrec.catalog import CatalogVersion
from genrec.catalog.published import CURRENT, Record, load_version
from genrec.errors import CatalogStoreError
from genrec.live import follower
from genrec.live.follower import Follower
from genrec.live.store import CatalogStore
from tests.unit.live.world import KINDS, NONE, QUANTIZER, SPACE, State, new_store, write_raw


def served(root: Path) -> CatalogVersion:
    return load_version(root, Record.load(root / CURRENT).version, SPACE)


def attributes_of(catalog: CatalogVersion, names: list[str]) -> dict[str, Any]:
    rows = catalog.rows_of(np.array([name.encode() for name in names] + [None], object)[:-1])
    there = [name for name, row in zip(names, rows, strict=True) if row >= 0]
    columns = catalog.columns_of(rows[rows >= 0])
    return dict(zip(there, zip(*(columns[name].tolist() for name in KINDS), strict=True), strict=True))


@pytest.mark.training  # it takes seconds
def test_what_is_served_is_what_the_store_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_MOST_FRESH", 6)
    names, draws = [f"i{number}" for number in range(30)], np.random.default_rng(0)
    state: State = {name: (number, 1, True, (f"b{number % 3}", None)) for number, name in enumerate(names[:20])}
    store = new_store(tmp_path / "c", state, kinds=KINDS)
    expected = {name: item[3] for name, item in state.items()}
    root = tmp_path / "published"
    running = Follower(store, root, most_popular=9, keep_s=0.0, log=lambda line: None)
    assert attributes_of(served(root), names) == expected
    for step in range(12):
        rows: list[dict[str, Any]] = []
        for name in draws.choice(names, 3, replace=False).tolist():
            operation = "remove" if draws.random() < 0.2 else "upsert"
            row = {"item_id": name, "operation": operation, "sid": [step % 4, 0, 0]}
            if operation == "remove":
                expected.pop(name, None)
            elif draws.random() < 0.6:
                price = float(draws.integers(0, 3))
                row["attributes"] = json.dumps({"price": price, "colour": "red"})
                expected[name] = (None, price)
            else:
                expected.setdefault(name, NONE)
            rows.append(row)
        write_raw(tmp_path / "c", rows)
        if step == 5:
            store.compact()
        if step % 2:
            running.look()
            assert attributes_of(served(root), names) == expected
        if step == 8:  # on what the one before left
            running = Follower(store, root, most_popular=9, keep_s=0.0, log=lambda line: None)
    view = served(root)
    rows = np.concatenate(list(view.popular_slices()))
    live = view.columns_of(rows)["price"].tolist()
    assert sorted(map(str, live)) == sorted(str(price) for _, price in expected.values())
    before = expected
    write_raw(
        tmp_path / "c", [{"item_id": next(iter(expected)), "operation": "upsert", "attributes": '{"price": "x"}'}]
    )
    running.look()
    assert attributes_of(served(root), names) == before
    store.rollback(0)
    running.look()
    assert attributes_of(served(root), names) == {name: item[3] for name, item in state.items()}


def test_a_catalogue_names_its_kinds(tmp_path: Path) -> None:
    new_store(tmp_path / "c", {"a": (1, 0, True)}, kinds=KINDS)
    assert CatalogStore.open(str(tmp_path / "c")).kinds == KINDS
    with pytest.raises(ValueError, match="has kind 'text'"):
        new_store(tmp_path / "d", {"a": (1, 0, True)}, kinds={"a": "text"})
    store = CatalogStore.open(str(tmp_path / "c"), QUANTIZER)
    bad = [{"item_id": "a", "operation": "upsert", "attributes": '{"price": "cheap"}'}]
    write_raw(tmp_path / "c", bad)
    [(version, why)] = store.read_commits(0, store.latest()).refused
    assert version == 1 and why.startswith("item 'a': attribute 'price' is \"cheap\", which is no number")
    with pytest.raises(CatalogStoreError, match="attribute 'price' is \"cheap\""):
        store.commit(pa.Table.from_pylist(bad), 1, "")
