"""JSON Lines whose lines do not agree: columns that begin late, values that are numbers here and text there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec_builders.data import Interactions, json_lines, read_dataset
from genrec_builders.data.json_lines import types_of_lines
from tests.histories import sequences

PLAIN = {"user_id": "u", "item_id": "x", "timestamp": 1}
LATE = 10_123  # lines before the first query
ITEMS = '{"item_id": "x", "sid": "1-2"}\n{"item_id": "y", "sid": "0-5"}\n'


def written(path: Path, records: list[dict]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("searched", [1, 1000, 16 << 20])  # bytes, so that the key lies at every place of a block
def test_a_rare_column_counts_wherever_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, searched: int
) -> None:
    monkeypatch.setattr(json_lines, "_SEARCHED", searched)
    records = [PLAIN] * LATE + [PLAIN | {"query": None}, PLAIN | {"query": "red tent", "other": 1}, PLAIN]
    path = written(tmp_path / f"a{ending}", records)
    plain = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()}
    assert types_of_lines(path, ("query",)) == plain | {"query": pa.string()}
    assert types_of_lines(path) == types_of_lines(path, ("brand",)) == plain


def test_a_query_that_begins_late_is_read(tmp_path: Path) -> None:
    events = [{"user_id": f"u{at}", "item_id": "xy"[at % 2], "timestamp": at} for at in range(LATE)]
    written(tmp_path / "interactions.jsonl", [*events, events[0] | {"timestamp": LATE, "query": "red tent"}])
    (tmp_path / "items.jsonl").write_text(ITEMS)
    queries = read_dataset(tmp_path).interactions.queries
    assert queries is not None and set(queries.to_pylist()) == {"", "red tent"}


def test_a_late_line_that_is_no_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [PLAIN] * LATE)
    with path.open("a") as file:
        file.write('{"user_id": "u", "query": red}\n')
    with pytest.raises(ValueError, match=f"line {LATE + 1} is not JSON"):
        types_of_lines(path, ("query",))


@pytest.mark.parametrize("query", [None, "red tent", 5])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_nested_key_of_the_same_name_hides_no_rare_column(tmp_path: Path, query: object, ending: str) -> None:
    nested = PLAIN | {"meta": {"query": "blue"}}
    records = [PLAIN] * LATE + [nested] * LATE + [PLAIN | {"query": query}]
    types = types_of_lines(written(tmp_path / f"a{ending}", records), ("query",))
    assert ("query" in types) == (query is not None)


# --- numbers here and text there


def interactions(folder: Path, records: list[dict], items: str = "0 1 2 x y") -> Interactions:
    written(folder / "interactions.jsonl", records)
    (folder / "items.csv").write_text("item_id\n" + "".join(f"{item}\n" for item in items.split()))
    return read_dataset(folder).interactions


EITHER = st.sampled_from([0, 1, 2, "0", "1", "2", "x", "y"])


@given(
    st.lists(st.tuples(EITHER, EITHER, st.sampled_from([5, "5", 4.5, "4.5", 3]), st.sampled_from([None, "a"]))),
    st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_ids_and_times_may_be_numbers_here_and_text_there(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], alike: int
) -> None:
    """Against Python, with blocks of a few lines, so that the first ones are read by Arrow."""
    rows = [(7, 1, 1, None)] * alike + rows
    records = [dict(zip(("user_id", "item_id", "timestamp", "query"), row, strict=True)) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_BLOCK", 150), ("_HEAD", 2), ("_PART", 3)):
            patch.setattr(json_lines, name, value)
        patch.setattr("genrec_builders.data.interactions._ROWS", 4)
        inter = interactions(tmp_path_factory.mktemp("lines"), records)
    expected: dict[str, list[tuple[float, str, str]]] = {}
    for user, item, time, query in rows:
        expected.setdefault(str(user), []).append((float(time), str(item), query or ""))
    ordered = {user: sorted(events, key=lambda event: event[0]) for user, events in expected.items()}
    ids = ["0", "1", "2", "x", "y"]
    assert inter.user_ids == list(ordered)
    assert [ids[row] for row in inter.rows] == [item for events in ordered.values() for _, item, _ in events]
    assert inter.times is not None
    assert inter.times.astype(float).tolist() == [time for events in ordered.values() for time, *_ in events]
    queries = [query for events in ordered.values() for *_, query in events]
    assert (inter.queries.to_pylist() if inter.queries is not None else [""] * len(queries)) == queries


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, "a"], ["1", "a"]), ([2**63, 5, 2**70], [str(2**63), "5", str(2**70)]), (["007", 7, "7"], ["007", "7"])],
)
def test_users_by_number_and_by_text(values: list, expected: list[str], tmp_path: Path) -> None:
    records = [{"user_id": value, "item_id": 0, "timestamp": at} for at, value in enumerate(values)]
    assert interactions(tmp_path, records).user_ids == expected


def test_a_text_that_first_comes_late_is_read(tmp_path: Path) -> None:
    records = [{"user_id": at, "item_id": at % 3, "timestamp": at} for at in range(LATE)]
    inter = interactions(tmp_path, [*records, {"user_id": "a", "item_id": "x", "timestamp": 0.5}])
    assert len(inter) == LATE + 1 and inter.user_ids[-2:] == [str(LATE - 1), "a"]
    assert inter.times is not None and inter.times[-1] == 0.5
    np.testing.assert_array_equal(inter.rows[:-1], np.arange(LATE) % 3)


@pytest.mark.parametrize(
    "lists",
    [
        {"u": [0, "1"], "v": ["x"]},
        {"u": [0, 1], "v": ["x", "0"]},
        {"u": ["x"], "v": [2]},
        {"u": [2**63], "v": [0, "y"]},
    ],
)
def test_lists_of_items_by_number_and_by_text(lists: dict[str, list], tmp_path: Path) -> None:
    expected = {user: [str(item) for item in items] for user, items in lists.items()}
    items = f"0 1 2 x y {2**63}"
    for name in ("item_ids", "item_id"):
        interactions(tmp_path, [{"user_id": user, name: value} for user, value in lists.items()], items)
        assert sequences(read_dataset(tmp_path)) == expected
    (tmp_path / "interactions.jsonl").unlink()
    (tmp_path / "inter.json").write_text(json.dumps(lists))
    assert sequences(read_dataset(tmp_path)) == expected


LINE = '{"user_id": 7, "item_id": 0, "timestamp": 1}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user_id": 1.5, "item_id": 0, "timestamp": 1}', "line 4 has 1.5 in 'user_id'; write text or a whole number"),
        ('{"user_id": 7, "item_id": true, "timestamp": 1}', "line 4 has True in 'item_id'; write text or a whole"),
        ('{"user_id": 7, "item_id": 0, "timestamp": {"a": 1}}', "line 4 has {'a': 1} in 'timestamp'; write text or a"),
        ('{"user_id": 7, "item_id": 0, "timestamp": "soon"}', "data row 3 has 'soon' in 'timestamp', which is no time"),
        (
            '{"user_id": "\\ud800", "item_id": 0, "timestamp": 1}',
            r"line 4 has '.ud800' in 'user_id', not valid",
        ),
        ('{"user_id": 7, "item_id": 0, "timestamp": 1', "line 4 is not JSON"),
        ("[7]", "line 4 holds a JSON list; expected an object"),
        ('{"user_id": null, "item_id": "x", "timestamp": 1}', "data row 3 has no user_id"),
        ('{"user_id": 7, "item_id": 0, "timestamp": 1, "timestamp": 2}', "timestamp. was specified twice"),
    ],
)
def test_what_is_neither_is_named_by_its_line(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_HEAD", 2)
    monkeypatch.setattr(json_lines, "_BLOCK", 100)
    (tmp_path / "items.csv").write_text("item_id\n0\n")
    (tmp_path / "interactions.jsonl").write_text(LINE + "\n" + LINE + line + "\n" + LINE)
    with pytest.raises(DataError, match=rf"interactions\.jsonl: .*{message}"):
        read_dataset(tmp_path)
