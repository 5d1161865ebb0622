"""Reading, writing and splitting data: what comes in is what the files say, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec_builders.data import (
    Dataset,
    Interactions,
    ItemTable,
    popularity,
    read_dataset,
    split_by_time,
    split_leave_one_out,
    write_dataset,
)
from genrec_builders.data.times import moment_among
from tests.histories import sequences

INDEX = {"0": ["<a_1>", "<b_2>"], "1": ["<a_0>", "<b_5>"], "7": ["<a_1>", "<b_2>"]}


def write_json(path: Path, inter: Any, index: Any = INDEX) -> Path:
    for name, value in (("inter.json", inter), ("index.json", index)):
        (path / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_tables(path: Path, items: dict[str, Any], interactions: dict[str, Any], kind: str = "parquet") -> Path:
    for name, columns in (("items", items), ("interactions", interactions)):
        table = pa.table(columns)
        if kind == "csv":
            pa_csv.write_csv(table, path / f"{name}.csv")
        else:
            pq.write_table(table, path / f"{name}.parquet")
    return path


ITEMS = {"item_id": ["x", "y", "z"]}
EVENTS = {"user_id": ["u", "u"], "item_id": ["x", "y"], "timestamp": [1, 2]}


# --- the JSON form


def test_json_form(tmp_path: Path) -> None:
    dataset = read_dataset(write_json(tmp_path, {"9": [7, 0, 7], "empty": [], "3": [1]}))
    assert sequences(dataset) == {"9": ["7", "0", "7"], "3": ["1"]}
    assert dataset.items.item_ids == ["0", "1", "7"]
    assert dataset.items.sids is not None and dataset.items.sids.dtype == np.int32
    assert dataset.items.sids.tolist() == [[1, 2], [0, 5], [1, 2]]
    assert dataset.items.levels == (2, 8)
    assert dataset.interactions.rows.dtype == np.int32
    assert dataset.interactions.offsets.dtype == np.int64


def test_json_form_takes_text_ids(tmp_path: Path) -> None:
    write_json(tmp_path, {"u": ["B00A", "B00B"]}, {"B00A": ["<a_0>"], "B00B": ["<a_3>"]})
    assert sequences(read_dataset(tmp_path)) == {"u": ["B00A", "B00B"]}


@pytest.mark.parametrize(
    ("inter", "index", "message"),
    [
        ({"u": [0, 99]}, INDEX, "user 'u' has item 99.*does not list"),
        ({"u": [0], "v": 3}, INDEX, "user 'v' has 3; expected a list"),
        ({"u": [0], "v": [1.5]}, INDEX, "user 'v' has .1.5."),
        ({"u": [0], "v": [True]}, INDEX, "user 'v' has .True."),
        ({"u": [0], "v": [None]}, INDEX, "user 'v' has .None."),
        ({"u": [0], "v": ["\ud800", 1]}, INDEX, r"user 'v' has '.ud800', which is not valid Unicode"),
        ({"u": [0, 1.0]}, INDEX, "user 'u'"),
        ({"u": [10**30]}, INDEX, "user 'u'"),
        ({"u": []}, INDEX, "no interactions"),
        ({}, INDEX, "inter.json: empty"),
        ([], INDEX, "holds a JSON list"),
        ("{", INDEX, "inter.json: not valid JSON"),
        ("[" * 100_000, INDEX, "inter.json: not valid JSON"),
        ('{"u": [0], "u": [1]}', INDEX, "key 'u' occurs more than once"),
        ({"": [0]}, INDEX, "user id '' has 0 bytes"),
        ({"u" * 129: [0]}, INDEX, "129 bytes"),
        ({"\ud800": [0]}, INDEX, "not valid Unicode"),
        ({"u": [0]}, {}, "index.json: empty"),
        ({"u": [0]}, '{"0": ["<a_1>"], "0": ["<a_2>"]}', "index.json: key '0' occurs more than once"),
        ({"u": [0]}, {"0": ["<a_1>"], "1": ["<a_1>", "<b_2>"]}, "item '1' has 2 codes and item '0' has 1"),
        ({"u": [0]}, {"0": ["<a_1>"], "1": ["<a_-4>"]}, "item '1' has the code -4 at level 0"),
        ({"u": [0]}, {"0": ["<a_1>"], "1": ["a1"]}, "item '1' has the code 'a1'; expected the form <a_128>"),
        ({"u": [0]}, {"0": ["<a_1>"], "1": [1]}, "item '1' has the code '1'; expected the form <a_128>"),
        ({"u": [0]}, {"0": []}, "no codes"),
        (
            {"u": [0]},
            {"0": ["<a_1>", "<b_1>"], "1": ["<b_1>", "<a_1>"]},
            "item '1' has the level letter 'b' in place 0",
        ),
        ({"u": [0]}, {"0": ["<a_1>", "<a_1>"]}, "level letter 'a' in place 1"),
        ({"u": [0]}, {"0": ["<a_4294967296>"]}, "code 4294967296"),
        ({"u": [0]}, {"é" * 65: ["<a_1>"]}, "130 bytes"),
    ],
)
def test_json_form_errors(tmp_path: Path, inter: Any, index: Any, message: str) -> None:
    write_json(tmp_path, inter, index)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_json_form_needs_both_files(tmp_path: Path) -> None:
    write_json(tmp_path, {"u": [0]})
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match=r"index\.json: missing"):
        read_dataset(tmp_path)


# --- the tabular form


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tabular_form(tmp_path: Path, kind: str) -> None:
    items = {
        "item_id": ["007", "7", "z"],
        "title": ["Tent, 2-person", 'The "Volt"', "line\nbreak"],
        "year": [2024, 2025, 2026],
        "sid_0": [1, 0, 1],
        "sid_1": [2, 5, 2],
        "embedding_0": [0.5, 1.5, -2.0],
        "embedding_1": [0.0, 0.25, 1.0],
    }
    events = {
        "note": [1, 2, 3, 4, 5],  # other columns are nobody's business
        "timestamp": [30, 10, 20, 20, 20],
        "user_id": ["b", "a", "b", "b", "a"],
        "item_id": ["z", "7", "7", "007", "z"],
    }
    dataset = read_dataset(write_tables(tmp_path, items, events, kind))
    # Users by first appearance; time order; equal times in the order of the file.
    assert sequences(dataset) == {"b": ["7", "007", "z"], "a": ["7", "z"]}
    assert dataset.items.attributes == {"title": items["title"], "year": ["2024", "2025", "2026"]}
    assert dataset.items.sids is not None and dataset.items.sids.tolist() == [[1, 2], [0, 5], [1, 2]]
    assert dataset.items.levels == (2, 8)
    assert dataset.items.embeddings is not None and dataset.items.embeddings.dtype == np.float32
    assert dataset.items.embeddings.tolist() == [[0.5, 0.0], [1.5, 0.25], [-2.0, 1.0]]


def test_csv_lists_are_text(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,sid,embedding\nx,"[1, 2]",0.5 1\ny,3 4,"(2,-1e-3)"\n')
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,y,2024-01-02\nu,x,2024-01-01\n")
    dataset = read_dataset(tmp_path)
    assert sequences(dataset) == {"u": ["x", "y"]}
    assert dataset.items.sids is not None and dataset.items.sids.tolist() == [[1, 2], [3, 4]]
    assert dataset.items.embeddings is not None
    np.testing.assert_array_equal(dataset.items.embeddings, np.array([[0.5, 1], [2, -1e-3]], dtype=np.float32))


def test_parquet_may_be_a_folder_of_parts(tmp_path: Path) -> None:
    (tmp_path / "interactions.parquet").mkdir()
    for part, (user, time) in enumerate([("u", 2), ("v", 5), ("u", 1)]):
        table = pa.table({"user_id": [user], "item_id": ["xyz"[part]], "timestamp": [time]})
        pq.write_table(table, tmp_path / "interactions.parquet" / f"part-{part}.parquet")
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    assert sequences(read_dataset(tmp_path)) == {"u": ["z", "x"], "v": ["y"]}


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([5, 6, 7], type=pa.int32()),
        pa.array([5, 6, 7], type=pa.uint64()),
        pa.array(["5", "6", "7"], type=pa.large_string()),
        pa.array(["5", "6", "7"]).dictionary_encode(),
        pa.array([5, 6, 7]).dictionary_encode(),
        pa.array([b"5", b"6", b"7"]),
    ],
    ids=lambda ids: str(ids.type),
)
def test_id_types(tmp_path: Path, ids: pa.Array) -> None:
    write_tables(tmp_path, {"item_id": ids}, {"user_id": ids, "item_id": ids, "timestamp": [1.5, 0.5, 2.5]})
    assert sequences(read_dataset(tmp_path)) == {"5": ["5"], "6": ["6"], "7": ["7"]}


@pytest.mark.parametrize(
    "times",
    [
        pa.array([2, 1], type=pa.uint64()),
        pa.array([2.5, -1.5]),
        pa.array([datetime(2025, 1, 2), datetime(2025, 1, 1)], type=pa.timestamp("us", tz="UTC")),
        pa.array([datetime(2025, 1, 2), datetime(2025, 1, 1)]).cast(pa.date32(), safe=False),
        pa.array([datetime(2025, 1, 2), datetime(2025, 1, 1)]).cast(pa.date64(), safe=False),
    ],
    ids=lambda times: str(times.type),
)
def test_timestamp_types(tmp_path: Path, times: pa.Array) -> None:
    write_tables(tmp_path, ITEMS, {**EVENTS, "timestamp": times})
    assert sequences(read_dataset(tmp_path)) == {"u": ["y", "x"]}


def test_attributes_fill_gaps_and_leave_out_nested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = {**ITEMS, "brand": ["A", None, "C"], "price": [1.5, 2.0, None], "tags": [["a"], [], ["b", "c"]]}
    dataset = read_dataset(write_tables(tmp_path, items, EVENTS))
    assert dataset.items.attributes == {"brand": ["A", "", "C"], "price": ["1.5", "2", ""]}
    assert dataset.items.typed["tags"].tolist() == [["a"], [], ["b", "c"]] and not caplog.text


@pytest.mark.parametrize(
    ("items", "events", "message"),
    [
        ({"id": ["x"]}, {}, r"items\.parquet: no column 'item_id' \(columns: id\)"),
        ({}, {"timestamp": None}, r"interactions\.parquet: no column 'timestamp'"),
        ({}, {"item_id": ["x", "q"]}, r"user 'u' has item 'q', which items\.parquet does not list \(1 of 2"),
        ({}, {"item_id": ["x", None]}, "data row 2 has no item_id"),
        ({}, {"user_id": ["", "u"]}, "data row 1 has no user_id; fill it in"),
        ({}, {"user_id": ["u", "u" * 129]}, "data row 2: user_id id .* has 129 bytes"),
        ({}, {"user_id": [1.0, 2.0]}, "column 'user_id' cannot serve as ids"),
        ({}, {"user_id": pa.array([b"\xff", b"u"])}, "column 'user_id' cannot serve as ids"),
        ({}, {"timestamp": [1, None]}, "data row 2 has no timestamp"),
        ({}, {"timestamp": [1.0, float("nan")]}, "data row 2 has timestamp nan"),
        (
            {},
            {"timestamp": ["soon", "later"]},
            "data row 1 has 'soon' in 'timestamp', which is no time; write Unix time",
        ),
        ({"item_id": ["x", "y", "x"]}, {}, "data row 3 repeats item_id 'x'"),
        ({"item_id": pa.array([], type=pa.string())}, {}, r"items\.parquet: no rows"),
        ({"sid": [[1], [2], [-3]]}, {}, "item 'z' has the code -3 at level 0"),
        ({"sid": [[1], [2], [3, 4]]}, {}, "item 'z' has 2 values in 'sid' and item 'x' has 1"),
        ({"sid": [[1], None, [3]]}, {}, "data row 2 has no sid"),
        ({"sid": [[1], [None], [3]]}, {}, "item 'y' has an empty value in 'sid'"),
        ({"sid": [[1], [2], [2**40]]}, {}, "item 'z' has the code 1099511627776"),
        ({"sid": [[1.0], [0.5], [2.0]]}, {}, "item 'y' has 0.5 in 'sid'; expected a whole number"),
        ({"sid": [1, 2, 3]}, {}, "column 'sid' is int64; expected a semantic ID per item such as '3-7-4'"),
        ({"sid": ["1 2", "3 4", "5 x"]}, {}, "item 'z' has the code 'x' in '5 x'; expected a semantic ID such"),
        ({"sid": [[1], [2], [3]], "sid_0": [1, 2, 3]}, {}, "keep one form"),
        ({"sid_0": [1, 2, 3], "sid_2": [1, 2, 3]}, {}, "without gaps"),
        ({"sid_0": [1, None, 3]}, {}, "item 'y' has an empty value in 'sid_0'"),
        ({"embedding": [[1.0], [float("nan")], [0.0]]}, {}, "item 'y' has the embedding value nan at dimension 0"),
        ({"embedding": [[1.0], [1e300], [0.0]]}, {}, "item 'y' has the embedding value inf"),
        ({"embedding": [[], [], []]}, {}, "no values in 'embedding'"),
        ({"embedding": [[1.0], [None], [0.0]]}, {}, "item 'y' has an empty value in 'embedding'"),
        ({"embedding": [["1"], ["b"], ["c"]]}, {}, "item 'y' has 'b' in 'embedding'; expected a number"),
    ],
)
def test_tabular_errors(tmp_path: Path, items: dict[str, Any], events: dict[str, Any], message: str) -> None:
    all_items = items if "item_id" in items or "id" in items else {**ITEMS, **items}
    all_events = {name: values for name, values in {**EVENTS, **events}.items() if values is not None}
    write_tables(tmp_path, all_items, all_events)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("user_id,item_id,timestamp\n", "no rows"),
        ("user_id,item_id,timestamp\nu,x\n", "cannot be read"),
        ("user_id,item_id,timestamp\nu,,3\n", "data row 1 has no item_id; fill it in"),
        ("user_id,item_id,timestamp\nu,x,\nu,x,3\n", "data row 1 has no timestamp"),
        ("user_id,item_id,timestamp,item_id\nu,x,1,x\n", "column 'item_id' occurs more than once"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "items.csv").write_text("item_id\nx\n")
    (tmp_path / "interactions.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_directory_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a directory"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no data found"):
        read_dataset(tmp_path)
    write_tables(tmp_path, ITEMS, EVENTS)
    (tmp_path / "items.csv").write_text("item_id\nx\n")
    with pytest.raises(DataError, match=r"both items\.csv and items\.parquet, and each has items"):
        read_dataset(tmp_path)
    (tmp_path / "items.csv").unlink()
    write_json(tmp_path, {"u": [0]})
    with pytest.raises(DataError, match=r"both inter\.json and interactions\.parquet, and each has interactions"):
        read_dataset(tmp_path)
    for name in ("inter.json", "index.json", "items.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"items\.parquet: missing"):
        read_dataset(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"items\.parquet: cannot be read"):
        read_dataset(tmp_path)


# --- queries


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_queries_keep_to_their_interactions(tmp_path: Path, kind: str) -> None:
    events = {
        "user_id": ["b", "a", "b", "b"],
        "item_id": ["z", "x", "y", "z"],
        "timestamp": [3, 1, 2, 1],
        "query": ["third, for b", None, "2024", 'first "z"'],
    }
    inter = read_dataset(write_tables(tmp_path, ITEMS, events, kind)).interactions
    assert inter.user_ids == ["b", "a"]
    assert inter.queries is not None and inter.queries.type == pa.large_string()
    assert inter.queries.to_pylist() == ['first "z"', "2024", "third, for b", ""]


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (pa.array(["a", None]).dictionary_encode(), ["a", ""]),
        (pa.array([None, "a"], pa.large_string()), ["", "a"]),
        (pa.nulls(2), ["", ""]),
        (pa.array([None, None], pa.string()), ["", ""]),
    ],
    ids=["dictionary", "large", "nulls", "empty text"],
)
def test_query_types(tmp_path: Path, queries: pa.Array, expected: list[str]) -> None:
    inter = read_dataset(write_tables(tmp_path, ITEMS, {**EVENTS, "query": queries})).interactions
    assert inter.queries is not None and inter.queries.to_pylist() == expected


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (pa.array([1, 2]), "column 'query' is int64; write the queries as text"),
        (pa.array([["a"], ["b"]]), "column 'query' is list"),
        (pa.array([b"a", b"b"]), "column 'query' is binary"),
        (
            pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")),
            "column 'query' cannot be read as text",
        ),
    ],
    ids=["numbers", "lists", "binary", "not UTF-8"],
)
def test_queries_that_are_no_text(tmp_path: Path, queries: pa.Array, message: str) -> None:
    write_tables(tmp_path, ITEMS, {**EVENTS, "query": queries})
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_data_without_queries_has_none(tmp_path: Path) -> None:
    dataset = read_dataset(write_tables(tmp_path, ITEMS, EVENTS))
    split = split_leave_one_out(dataset.interactions)
    assert dataset.interactions.queries is split.train.queries is split.test.queries is None
    write_dataset(dataset, tmp_path / "again")
    assert "query" not in pq.read_schema(tmp_path / "again" / "interactions.parquet").names


# --- writing


def example() -> Dataset:
    rng = np.random.default_rng(0)
    items = ItemTable(
        item_ids=["a", "b", "ø", "d"],
        sids=rng.integers(0, 3, (4, 3)).astype(np.int32),
        levels=(3, 100, 7),
        embeddings=rng.normal(size=(4, 5)).astype(np.float32),
        attributes={"title": ["A", "B", "", "D"]},
    )
    offsets, rows = np.array([0, 3, 4]), np.array([3, 0, 3, 1], dtype=np.int32)
    queries = pa.array(["a tent", "", "ø, twice", ""], pa.large_string())
    return Dataset(items, Interactions(["u", "v"], offsets, rows, queries))


def test_write_and_read_back(tmp_path: Path) -> None:
    dataset = example()
    write_dataset(dataset, tmp_path / "new" / "place")
    again = read_dataset(tmp_path / "new" / "place")
    assert again.items.item_ids == dataset.items.item_ids
    assert again.items.levels == (3, 100, 7)  # kept, not guessed
    assert again.items.attributes == dataset.items.attributes
    for written, read in ((dataset.items.sids, again.items.sids), (dataset.items.embeddings, again.items.embeddings)):
        assert written is not None and read is not None and written.dtype == read.dtype
        np.testing.assert_array_equal(written, read)
    assert again.interactions.user_ids == dataset.interactions.user_ids
    np.testing.assert_array_equal(again.interactions.offsets, dataset.interactions.offsets)
    np.testing.assert_array_equal(again.interactions.rows, dataset.interactions.rows)
    assert again.interactions.queries is not None and again.interactions.queries.equals(dataset.interactions.queries)


def test_write_refuses_ambiguity(tmp_path: Path) -> None:
    items = ItemTable(["a"], attributes={"sid": ["text"]})
    inter = Interactions(["u"], np.array([0, 1]), np.zeros(1, dtype=np.int32))
    with pytest.raises(DataError, match="reserved"):
        write_dataset(Dataset(items, inter), tmp_path)
    (tmp_path / "items.csv").write_text("item_id\n")
    with pytest.raises(FileExistsError, match=r"holds items\.csv, .* name another folder"):
        write_dataset(example(), tmp_path)


def test_wrong_levels_in_metadata(tmp_path: Path) -> None:
    write_dataset(example(), tmp_path)
    table = pq.read_table(tmp_path / "items.parquet")
    for levels in (b"[3, 1, 7]", b"[3, 100]", b"nonsense", b"[3, 100, true]"):
        pq.write_table(table.replace_schema_metadata({b"genrec.levels": levels}), tmp_path / "items.parquet")
        with pytest.raises(DataError, match="write the file again"):
            read_dataset(tmp_path)


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="together"):
        ItemTable(["a"], sids=np.zeros((1, 2), dtype=np.int32))
    with pytest.raises(DataError, match=r"int32 \[1, 2\]"):
        ItemTable(["a"], sids=np.zeros((1, 2), dtype=np.int64), levels=(2, 2))
    with pytest.raises(DataError, match="outside its level"):
        ItemTable(["a"], sids=np.array([[0, 2]], dtype=np.int32), levels=(2, 2))
    with pytest.raises(DataError, match=r"float32 \[1, D\]"):
        ItemTable(["a"], embeddings=np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match="'title' has 0 values"):
        ItemTable(["a"], attributes={"title": []})
    with pytest.raises(DataError, match="offsets must run"):
        Interactions(["u"], np.array([0, 2]), np.zeros(1, dtype=np.int32))
    with pytest.raises(DataError, match="must not decrease"):
        Interactions(["u", "v"], np.array([0, 2, 1]), np.zeros(1, dtype=np.int32))
    for queries in (pa.array(["a"]), pa.array(["a", "b"], pa.large_string()), pa.array([None], pa.large_string())):
        with pytest.raises(DataError, match=r"need large_string \[1\] without nulls"):
            Interactions(["u"], np.array([0, 1]), np.zeros(1, dtype=np.int32), queries)
    with pytest.raises(DataError, match="rows 0 to 4 of an item table of 1"):
        Dataset(ItemTable(["a"]), Interactions(["u"], np.array([0, 2]), np.array([0, 4], dtype=np.int32)))


# --- the split

HISTORIES = st.lists(st.lists(st.integers(0, 20), max_size=9), min_size=1, max_size=12)


def as_interactions(histories: list[list[int]]) -> Interactions:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
    rows = np.array([row for history in histories for row in history], dtype=np.int32)
    texts = [f"{user}: {place}" for user, history in enumerate(histories) for place in range(len(history))]
    return Interactions([str(i) for i in range(len(histories))], offsets, rows, pa.array(texts, pa.large_string()))


@given(HISTORIES, st.integers(1, 5))
@settings(deadline=None)
def test_split_is_the_protocol(histories: list[list[int]], limit: int) -> None:
    split = split_leave_one_out(as_interactions(histories))
    held = [i for i, history in enumerate(histories) if len(history) >= 3]
    train = [history[:-2] if len(history) >= 3 else history for history in histories]
    assert [split.train[i].tolist() for i in range(len(split.train))] == train
    for part, back in ((split.validation, 2), (split.test, 1)):
        assert part.histories.users.tolist() == held
        assert [part.histories[i].tolist() for i in range(len(part))] == [histories[i][:-back] for i in held]
        assert part.targets.tolist() == [histories[i][-back] for i in held]
        assert part.targets.dtype == np.int32 and part.histories.rows.dtype == np.int32
        assert part.queries is not None
        assert part.queries.to_pylist() == [f"{i}: {len(histories[i]) - back}" for i in held]
        assert part.histories.queries is not None
        assert part.histories.queries.to_pylist() == [
            f"{i}: {place}" for i in held for place in range(len(histories[i]) - back)
        ]
    recent = split.train.recent(limit)
    assert recent.queries is not None
    assert recent.queries.to_pylist() == [
        f"{i}: {place}" for i, history in enumerate(train) for place in range(len(history))[-limit:]
    ]
    assert [recent[i].tolist() for i in range(len(recent))] == [history[-limit:] for history in train]


@given(HISTORIES)
@settings(deadline=None)
def test_tuning_ranks_the_validation_items_and_never_sees_the_test_items(histories: list[list[int]]) -> None:
    split = split_leave_one_out(as_interactions(histories))
    tuning = split_leave_one_out(as_interactions(histories).without_last())
    assert [tuning.train[i].tolist() for i in range(len(histories))] == [
        history[:-3] if len(history) >= 4 else history[:-1] for history in histories
    ]
    place = {user: i for i, user in enumerate(split.validation.histories.users.tolist())}
    for i, user in enumerate(tuning.test.histories.users.tolist()):
        assert tuning.test.targets[i] == split.validation.targets[place[user]]
        assert tuning.test.histories[i].tolist() == split.validation.histories[place[user]].tolist()
    assert tuning.test.queries is not None and len(tuning.test.queries) == len(tuning.test)


@given(HISTORIES)
@settings(deadline=None)
def test_popularity_counts_training_only(histories: list[list[int]]) -> None:
    interactions = as_interactions(histories)
    expected = [0] * 21
    for history in histories:
        for row in history[:-2] if len(history) >= 3 else history:
            expected[row] += 1
    split = split_leave_one_out(interactions)
    for source in (interactions, split, split.train):
        counts = popularity(source, 21)
        assert counts.dtype == np.int64 and counts.tolist() == expected


@st.composite
def timed(draw: st.DrawFn) -> tuple[list[list[tuple[int, int]]], int]:
    """Histories of (time, row), in order, and a moment among the times."""
    histories = draw(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=7), min_size=1))
    return [sorted(history, key=lambda event: event[0]) for history in histories], draw(st.integers(1, 9))


@given(timed(), st.sampled_from(["int", "float", "M8[s]"]))
@settings(deadline=None)
def test_nothing_from_the_moment_on_reaches_training(
    example: tuple[list[list[tuple[int, int]]], int], kind: str
) -> None:
    histories, moment = example
    plain = as_interactions([[row for _, row in history] for history in histories])
    times = np.array([time for history in histories for time, _ in history], dtype="int64")
    times = times.astype(kind) if kind != "int" else times
    inter = Interactions(plain.user_ids, plain.offsets, plain.rows, plain.queries, times)
    before = [sum(time < moment for time, _ in history) for history in histories]
    text = f"1970-01-01T00:00:0{moment}" if kind == "M8[s]" else str(moment)
    if not any(before) or sum(before) == len(plain.rows):
        with pytest.raises(DataError, match="all interactions lie"):
            split_by_time(inter, text)
        return
    split = split_by_time(inter, text)
    rows = [[row for _, row in history] for history in histories]
    assert [split.train[i].tolist() for i in range(len(histories))] == [
        r[:n] for r, n in zip(rows, before, strict=True)
    ]
    for part, more in ((split.validation, 0), (split.test, 1)):
        held = [i for i, n in enumerate(before) if n and len(rows[i]) > n + more]
        assert part.histories.users.tolist() == held
        assert part.targets.tolist() == [rows[i][before[i] + more] for i in held]
        assert [part.histories[i].tolist() for i in range(len(held))] == [rows[i][: before[i] + more] for i in held]
        assert part.queries is not None and part.queries.to_pylist() == [f"{i}: {before[i] + more}" for i in held]
    # What is held out may be anything: training, popularity and the queries learned from stay as they are.
    late = times >= moment_among(text, times)
    swapped = np.where(late, 20 - plain.rows, plain.rows).astype(np.int32)
    texts = pa.array(
        ["secret" if hidden else text for hidden, text in zip(late, plain.queries.to_pylist(), strict=True)]
    )
    other = split_by_time(
        Interactions(plain.user_ids, plain.offsets, swapped, texts.cast(pa.large_string()), times), text
    )
    np.testing.assert_array_equal(other.train.rows, split.train.rows)
    np.testing.assert_array_equal(other.train.offsets, split.train.offsets)
    np.testing.assert_array_equal(popularity(other, 21), popularity(split, 21))
    assert other.train.queries is not None and other.train.queries.equals(split.train.queries)


MILLIS = np.array([1_714_521_600_000, 1_714_521_600_001])  # 2024-05-01, in milliseconds


@pytest.mark.parametrize(
    ("moment", "times", "expected"),
    [
        ("1714521600001", MILLIS, [True, False]),
        ("2024-05-01", MILLIS, [False, False]),
        ("2024-05-01T00:00:00.0005", MILLIS, [True, False]),
        ("2024-05-01T02:00:00.001+02:00", MILLIS, [True, False]),
        ("2024-05-01T00:00:00.0005", MILLIS / 1000, [True, False]),
        ("2024-05-01T00:00:00.0005", MILLIS.astype("M8[ms]"), [True, False]),
        ("2024-05-01", MILLIS.astype("M8[ms]") - np.timedelta64(1, "ms"), [True, False]),
        ("1.714521600001e12", MILLIS, [True, False]),
        ("-1", np.array([-2, 0]), [True, False]),
    ],
)
def test_moments(moment: str, times: np.ndarray, expected: list[bool]) -> None:
    assert (times < moment_among(moment, times)).tolist() == expected


@pytest.mark.parametrize(
    ("moment", "times", "message"),
    [
        ("May", MILLIS, "cannot split at 'May': it is no moment; write a date such as 2024-05-01"),
        ("17", MILLIS.astype("M8[ms]"), "at 17: it is a number, and the timestamps are dates"),
        ("2024-05-02", MILLIS, r"all interactions lie before it; they are of 2024-05-01T00:00:00\.000 to"),
        ("1714521600000", MILLIS, "all interactions lie at or after it"),
        ("2024-05-02", None, "no timestamps, only an order; add the timestamps, or split without"),
    ],
)
def test_moments_that_split_nothing(moment: str, times: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_time(Interactions(["u"], np.array([0, 2]), np.zeros(2, np.int32), None, times), moment)


def test_times_are_written_and_read(tmp_path: Path) -> None:
    for number, times in enumerate((MILLIS, MILLIS / 7, MILLIS.astype("M8[ms]"))):
        inter = Interactions(["u"], np.array([0, 2]), np.zeros(2, np.int32), None, times)
        write_dataset(Dataset(ItemTable(["a"]), inter), tmp_path / str(number))
        again = read_dataset(tmp_path / str(number)).interactions.times
        assert again is not None and again.dtype == times.dtype and again.tolist() == times.tolist()
        assert inter.without_last().times.tolist() == times[:1].tolist()  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"times are int64 \[1\]; 2 interactions need"):
        Interactions(["u"], np.array([0, 2]), np.zeros(2, np.int32), None, MILLIS[:1])


def test_interactions_with_unknown_items_are_dropped_if_they_are_few(tmp_path: Path) -> None:
    events = {"user_id": ["u", "v", "u", "w", "u"], "item_id": ["x", "q", "y", "r", "z"], "timestamp": [3, 1, 2, 4, 1]}
    write_tables(tmp_path, ITEMS, events)
    lines: list[str] = []
    dataset = read_dataset(tmp_path, lines.append)
    assert sequences(dataset) == {"u": ["z", "y", "x"]}
    assert lines[1] == (
        "not used: 2 interactions of interactions.parquet with items that items.parquet does not list, such as 'q' of "
        "user 'v'; 2 users of interactions.parquet without interactions (v, w)"
    )


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read bit by bit, ids keep their numbers, and equal times the order of the file."""
    rng = np.random.default_rng(0)
    events = {
        "user_id": [f"u{n}" for n in rng.integers(0, 40, 500)],
        "item_id": [f"i{n}" for n in rng.integers(0, 30, 500)],
        "timestamp": rng.integers(0, 5, 500),
        "query": [f"q{n}" for n in range(500)],
    }
    items = {"item_id": [f"i{n}" for n in range(30)]}
    for kind in ("parquet", "csv"):
        folder = tmp_path / kind
        folder.mkdir()
        write_tables(folder, items, events, kind)
    put_lines = [dict(zip(events, row, strict=True)) for row in zip(*map(list, events.values()), strict=True)]
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl/interactions.jsonl").write_text("".join(json.dumps(e, default=int) + "\n" for e in put_lines))
    pq.write_table(pa.table(items), tmp_path / "jsonl/items.parquet")
    whole = read_dataset(tmp_path / "parquet").interactions
    expected: dict[str, list[tuple[int, int, str, str]]] = {}
    for at, (user, item, time, query) in enumerate(zip(*events.values(), strict=True)):
        expected.setdefault(user, []).append((int(time), at, item, query))
    assert whole.user_ids == list(expected)
    sorted_queries = [query for user in expected for *_, query in sorted(expected[user])]
    assert whole.queries is not None and whole.queries.to_pylist() == sorted_queries
    for name, value in (("interactions._ROWS", 7), ("table_files._BLOCK", 100), ("table_files._BATCH", 5)):
        monkeypatch.setattr(f"genrec_builders.data.{name}", value)
    monkeypatch.setattr("genrec_builders.data.json_lines._BLOCK", 200)
    for kind in ("parquet", "csv", "jsonl"):
        told: list[tuple[int, int, str]] = []

        @contextmanager
        def track(title: str, told: list = told) -> Iterator[Any]:
            yield lambda *progress: told.append(progress)

        parts = read_dataset(tmp_path / kind, track=track).interactions
        assert parts.user_ids == whole.user_ids and parts.queries.equals(whole.queries)  # type: ignore[union-attr]
        for name in ("rows", "offsets", "times"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
        assert len(told) > 5 and told[-1][0] == told[-1][1] and told == sorted(told, key=lambda each: each[0])


def test_popularity_and_sequences_refuse_what_is_outside() -> None:
    split = split_leave_one_out(as_interactions([[5, 1, 2]]))
    with pytest.raises(DataError, match="row 5 is outside a catalogue of 5"):
        popularity(split, 5)
    with pytest.raises(ValueError, match="at least 1"):
        split.train.recent(0)
    with pytest.raises(IndexError):
        split.train[1]
    assert split.train[-1].tolist() == [5]
