"""A base with folded changes over it is the catalogue that a dict would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import CatalogBase, CatalogVersion, Columns, Delta, SemanticIdSpace
from genrec.live.changes import Changes
from genrec.live.fold import Fold

SPACE = SemanticIdSpace((3, 2, 2))
IDS = [f"i{number}" for number in range(14)] + ["a-longer-name-than-the-others"]
KINDS = {"brand": "string", "price": "number", "tags": "strings"}
NOTHING: dict = {"brand": None, "price": None, "tags": []}
Item = tuple  # code, popularity, available, and attributes, which may be left out
Commit = dict[str, Item | None]  # None removes, and keeps what an item has

words = st.sampled_from(["a", "b", "long"])
attributes = st.fixed_dictionaries(
    {"brand": st.none() | words, "price": st.none() | st.integers(0, 3).map(float), "tags": st.lists(words, max_size=2)}
)
items = st.tuples(st.integers(0, SPACE.size - 1), st.integers(0, 5), st.booleans(), attributes)
fields = st.tuples(
    st.none() | st.integers(0, SPACE.size - 1),
    st.none() | st.integers(0, 5),
    st.none() | st.booleans(),
    st.none() | attributes,
)
bases = st.dictionaries(st.sampled_from(IDS[:10]), items, max_size=10)
commits = st.dictionaries(st.sampled_from(IDS), st.none() | fields, min_size=1, max_size=6)


def base_of(state: dict[str, Item]) -> CatalogBase:
    values = list(state.values())
    return CatalogBase.build(
        SPACE,
        np.array([item_id.encode() for item_id in state] or [b"x"], np.bytes_)[: len(state)],
        np.array([item[0] for item in values], np.int64),
        np.array([item[1] for item in values], np.int64),
        np.array([item[2] for item in values], bool),
        columns_of([described(item) for item in values]),
    )


def described(item: Item) -> dict:
    return item[3] if len(item) > 3 else NOTHING


def columns_of(said: list[dict]) -> Columns:
    return Columns.of_values(KINDS, {name: [one[name] for one in said] for name in KINDS}, len(said))


def described_by(columns: Columns) -> list[dict]:
    lists = {name: column.tolist() for name, column in columns.items()}
    return [{name: values[at] for name, values in lists.items()} for at in range(columns.count)]


def in_words(said: dict) -> str:
    return str([said[name] for name in KINDS])


def changes_of(commit: Commit) -> Changes:
    kept = [
        (-1, -1, -1) if fields is None else [-1 if v is None else int(v) for v in fields[:3]]
        for fields in commit.values()
    ]
    codes, popularity, available = np.array(kept, np.int64).reshape(-1, 3).T
    said = [None if fields is None else (*fields, None)[3] for fields in commit.values()]
    return Changes(
        item_ids=np.array([item_id.encode() for item_id in commit]),
        removed=np.array([fields is None for fields in commit.values()]),
        codes=codes,
        popularity=popularity,
        available=available.astype(np.int8),
        columns=columns_of([NOTHING if one is None else one for one in said]),
        described=np.array([one is not None for one in said]),
    )


def applied(state: dict[str, Item], commit: Commit) -> dict[str, Item]:
    """What a dict of items becomes. Raises KeyError for a new item without a code."""
    after = dict(state)
    for item_id, change in commit.items():
        if change is None:
            after.pop(item_id, None)
            continue
        old = (*state.get(item_id, (None, 0, True)), NOTHING)[:4]
        new = tuple(kept if one is None else one for one, kept in zip((*change, None)[:4], old, strict=True))
        if new[0] is None:
            raise KeyError(item_id)
        after[item_id] = new
    return after


def objects(ids: list[str]) -> np.ndarray:
    array = np.empty(len(ids), object)
    array[:] = [item_id.encode() for item_id in ids]
    return array


def assert_holds(version: CatalogVersion, state: dict[str, Item]) -> None:
    """Every question that a step asks is answered from `state`."""
    asked = [*IDS, "never", "i1\0"]
    rows = version.rows_of(objects(asked))
    assert [item_id for item_id, row in zip(asked, rows.tolist(), strict=True) if row >= 0] == [
        item_id for item_id in asked if item_id in state
    ]
    known = [item_id for item_id in asked if item_id in state]
    known_rows = rows[rows >= 0]
    assert version.ids_of(known_rows).tolist() == [item_id.encode() for item_id in known]
    codes = version.space.encode(version.sids_of(known_rows)) if known else np.empty(0)
    assert codes.tolist() == [state[item_id][0] for item_id in known]
    assert dict(version.kinds) == KINDS
    assert described_by(version.columns_of(known_rows)) == [described(state[item_id]) for item_id in known]
    live = {item_id: item for item_id, item in state.items() if item[2]}
    parts = [(first, np.ones(count, bool) if may is None else may) for first, _, may, count in version.parts()]
    rows = np.concatenate([first + np.flatnonzero(may) for first, may in parts])
    rows = rows[version.are_live(rows)]
    assert sorted(version.ids_of(rows).tolist()) == sorted(item_id.encode() for item_id in live)
    assert described_by(version.columns_of(rows)) == [
        described(live[item_id.decode()]) for item_id in version.ids_of(rows)
    ]
    assert version.live_items == len(live)
    assert version.are_live(known_rows).tolist() == [item_id in live for item_id in known]
    popular = np.concatenate(list(version.popular_slices()))
    assert sorted(popular.tolist()) == sorted(rows.tolist())
    assert (np.diff(version.popularity_of(popular)) <= 0).all()
    sample = version.sample_rows(3)
    assert np.unique(sample).size == sample.size == min(3, version.base.live)
    every = np.arange(SPACE.size)
    buckets = version.buckets_of(every.reshape(2, -1)).ravel()
    for code in range(SPACE.size):
        assert (buckets[code] >= 0) == any(item[0] == code for item in live.values())
    rows, source = version.expand(buckets[buckets >= 0])
    assert (np.diff(source) >= 0).all()
    found = [item_id.decode() for item_id in version.ids_of(rows)]
    assert sorted(found) == sorted(item_id for item_id, item in state.items() if item[2])
    code_of_source = every[buckets >= 0]
    assert [state[item_id][0] for item_id in found] == code_of_source[source].tolist()
    sold = np.array([state[item_id][1] for item_id in found])
    assert (np.diff(sold)[np.diff(source) == 0] <= 0).all()
    popular = [item_id.decode() for item_id in version.ids_of(version.popular_rows)]
    assert len(set(popular)) == len(popular)
    best = sorted((item[1] for item in state.values() if item[2]), reverse=True)
    assert [state[item_id][1] for item_id in popular] == best[: len(popular)]
    assert all(state[item_id][2] for item_id in popular)


@given(bases, st.lists(commits, max_size=6), st.integers(0, 6), st.none() | st.integers(0, 5))
def test_any_history_of_changes_gives_what_a_dict_would_hold(
    state: dict[str, Item], history: list[Commit], most_popular: int, merged_at: int | None
) -> None:
    base = base_of(state)
    fold = Fold(CatalogVersion(0, base), base.live)
    states = {0: state}
    for number, commit in enumerate(history):
        if number == merged_at:  # one layer more
            below = CatalogVersion(1, base, fold.delta(most_popular + len(IDS)))
            fold = Fold(below, fold.live)
        changes = changes_of(commit)
        before = state
        try:
            state = applied(state, commit)
        except KeyError as error:
            with pytest.raises(ValueError, match=f"item '{error.args[0]}'|is new and has neither"):
                fold.apply(changes)
            continue
        moved = fold.apply(changes, number + 1)
        assert moved.tolist() == sorted(codes_that_changed(before, state))
        states[number + 1] = state
    version = CatalogVersion(7, base, *fold.below.deltas, fold.delta(most_popular), base_version=0)
    assert fold.live == sum(item[2] for item in state.values())
    assert_holds(version, state)
    for number, then in states.items():
        rows = version.changed_since(number)
        assert rows is not None
        changed = {item_id for item_id, item in state.items() if item[2] and then.get(item_id) != item}
        assert changed <= {item_id.decode() for item_id in version.ids_of(rows)}
    assert version.changed_since(-1) is None
    assert version.popular_rows.size == min(most_popular, sum(item[2] for item in state.values()))


def codes_that_changed(before: dict[str, Item], after: dict[str, Item]) -> set[int]:
    """Codes of which an item came or went."""
    codes = set()
    for item_id in before.keys() | after.keys():
        was, is_now = (state.get(item_id, (None, 0, False, None)) for state in (before, after))
        was_live, now_live = ((item[0] if item[2] else None) for item in (was, is_now))
        if was_live != now_live:
            codes |= {code for code in (was_live, now_live) if code is not None}
    return codes


@given(bases.filter(bool), commits)
def test_what_was_saved_answers_as_what_was_built(state: dict[str, Item], commit: Commit) -> None:
    import tempfile

    base = base_of(state)
    fold = Fold(CatalogVersion(0, base), base.live)
    try:
        after = applied(state, commit)
    except KeyError:
        return
    fold.apply(changes_of(commit))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base.save(folder / "base")
        fold.delta(5).save(folder / "delta")
        mapped = CatalogVersion(1, CatalogBase.load(folder / "base", SPACE), Delta.load(folder / "delta"))
        assert_holds(mapped, after)
