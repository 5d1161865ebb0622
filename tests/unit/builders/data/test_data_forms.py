"""Every form of data gives the same dataset, and what nearly fits is read, or refused with what to do."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec_builders.data import Dataset, Interactions, ItemTable, read_dataset
from genrec_builders.data.checks import rounded_levels
from tests.histories import sequences

LETTERS = "abcdefgh"


def put(path: Path, text: str) -> None:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def put_rows(path: Path, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> None:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])


def put_raw(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """As RecBole's files are written: no value is quoted."""
    put(path, "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))


def put_lines(path: Path, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


# --- random datasets, and what each form writes of them

WORDS = st.text("abcXYZ0159-_ø", min_size=1, max_size=6)
TITLES = (
    st.text("abc 012-:/'\"\n,;\tø", max_size=12) | st.dates().map(str) | st.sampled_from(["NA", "007", "null", "1e5"])
)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    item_ids = draw(st.lists(WORDS | st.dates().map(str), min_size=1, max_size=6, unique=True))
    user_ids = draw(st.lists(WORDS | st.dates().map(str), min_size=1, max_size=5, unique=True))
    n, levels = len(item_ids), draw(st.integers(1, 4))
    codes = st.integers(0, 300) | st.just(2**31 - 2)
    sids = np.array(draw(st.lists(st.lists(codes, min_size=levels, max_size=levels), min_size=n, max_size=n)), np.int32)
    histories = draw(
        st.lists(
            st.lists(st.integers(0, n - 1), min_size=1, max_size=5), min_size=len(user_ids), max_size=len(user_ids)
        )
    )
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    rows = np.array([row for history in histories for row in history], np.int32)
    titles = draw(st.lists(TITLES, min_size=n, max_size=n))
    embeddings = np.array(
        draw(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2), min_size=n, max_size=n)),
        np.float32,
    )
    queries = draw(st.none() | st.lists(TITLES, min_size=len(rows), max_size=len(rows)))
    return Dataset(
        ItemTable(item_ids, sids, rounded_levels(sids), embeddings, {"title": titles}),
        Interactions(user_ids, offsets, rows, None if queries is None else pa.array(queries, pa.large_string())),
    )


def parts(dataset: Dataset) -> tuple[dict[str, list[Any]], dict[str, list[Any]], dict[str, list[Any]]]:
    """The columns of the items, of the events and of the users' lists."""
    items, inter = dataset.items, dataset.interactions
    assert items.sids is not None and items.embeddings is not None
    item_columns: dict[str, list[Any]] = {
        "item_id": items.item_ids,
        "title": items.attributes["title"],
        "sid": items.sids.tolist(),
        "embedding": items.embeddings.tolist(),
    }
    spans = list(zip(inter.offsets[:-1].tolist(), inter.offsets[1:].tolist(), strict=True))
    ids = [items.item_ids[row] for row in inter.rows.tolist()]
    users = [user for user, (start, end) in zip(inter.user_ids, spans, strict=True) for _ in range(start, end)]
    events: dict[str, list[Any]] = {"user_id": users, "item_id": ids, "timestamp": list(range(len(ids)))}
    lists: dict[str, list[Any]] = {"user_id": inter.user_ids, "item_ids": [ids[start:end] for start, end in spans]}
    if inter.queries is not None:
        events["query"] = inter.queries.to_pylist()
        lists["queries"] = [events["query"][start:end] for start, end in spans]
    return item_columns, events, lists


NOTATIONS: dict[str, Callable[[list[int]], Any]] = {
    "3-7-4": lambda codes: "-".join(map(str, codes)),
    "3 7 4": lambda codes: " ".join(map(str, codes)),
    "[3, 7, 4]": json.dumps,
    "<a_3><b_7>": lambda codes: "".join(f"<{LETTERS[i]}_{code}>" for i, code in enumerate(codes)),
    "<s_a_3> <s_b_7>": lambda codes: " ".join(f"<s_{LETTERS[i]}_{code}>" for i, code in enumerate(codes)),
    "<|a_3|><|b_7|>": lambda codes: "".join(f"<|{LETTERS[i]}_{code}|>" for i, code in enumerate(codes)),
    "<|sid_begin|>": lambda codes: (
        "<|sid_begin|>" + "".join(f"<s_{LETTERS[i]}_{code}>" for i, code in enumerate(codes)) + "<|sid_end|>"
    ),
    '["<a_3>", "<b_7>"]': lambda codes: json.dumps([f"<{LETTERS[i]}_{code}>" for i, code in enumerate(codes)]),
}
LISTS: dict[str, Callable[[list[int]], Any]] = {
    "[3, 7]": list,
    "['<a_3>', '<b_7>']": lambda codes: [f"<{LETTERS[i]}_{code}>" for i, code in enumerate(codes)],
    "['<item_a_3>']": lambda codes: [f"<item_{LETTERS[i]}_{code}>" for i, code in enumerate(codes)],
    "with begin and end": lambda codes: [
        "<|sid_begin|>",
        *(f"<s_{LETTERS[i]}_{code}>" for i, code in enumerate(codes)),
        "<|sid_end|>",
    ],
}


def columns_to_rows(columns: dict[str, list[Any]]) -> tuple[list[str], list[list[Any]]]:
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def write_text_table(path: Path, columns: dict[str, list[Any]]) -> None:
    put_rows(path, *columns_to_rows(columns), delimiter="," if ".csv" in path.name else "\t")


def as_text(columns: dict[str, list[Any]], notation: Callable[[list[int]], Any]) -> dict[str, list[Any]]:
    """Items' columns for a form without lists."""
    embeddings = [" ".join(map(repr, each)) for each in columns["embedding"]]
    return {**columns, "sid": [notation(codes) for codes in columns["sid"]], "embedding": embeddings}


def write_json_form(folder: Path, dataset: Dataset, prefix: str, gz: str, notation: Callable[[list[int]], Any]) -> None:
    items, _, lists = parts(dataset)
    index = {item: notation(codes) for item, codes in zip(items["item_id"], items["sid"], strict=True)}
    texts = {
        item: {"title": title, "embedding": embedding}
        for item, title, embedding in zip(items["item_id"], items["title"], items["embedding"], strict=True)
    }
    inter = dict(zip(lists["user_id"], lists["item_ids"], strict=True))
    for name, value in (("inter", inter), ("index", index), ("item", texts)):
        put(folder / f"{prefix}{name}.json{gz}", json.dumps(value))


def write_tables(
    folder: Path, dataset: Dataset, ending: str, notation: Callable[[list[int]], Any], listed: bool
) -> None:
    items, events, lists = parts(dataset)
    interactions = lists if listed else events
    if ending == ".parquet":
        items = {**items, "sid": [notation(codes) for codes in items["sid"]]}
        pq.write_table(pa.table(items), folder / "items.parquet")
        pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    elif ".jsonl" in ending:
        put_lines(folder / f"items{ending}", {**items, "sid": [notation(codes) for codes in items["sid"]]})
        put_lines(folder / f"interactions{ending}", interactions)
    else:
        write_text_table(folder / f"items{ending}", as_text(items, notation))
        if listed:
            interactions = {
                name: [json.dumps(value) if isinstance(value, list) else value for value in values]
                for name, values in interactions.items()
            }
        write_text_table(folder / f"interactions{ending}", interactions)


def write_atomic(folder: Path, dataset: Dataset, gz: str, sequences: str, notation: Callable[[list[int]], Any]) -> None:
    items, events, lists = parts(dataset)
    columns = as_text(items, notation)
    header = ["item_id:token", "title:token_seq", "sid:token_seq", "embedding:float_seq"]
    put_raw(folder / f"Beauty.item{gz}", header, columns_to_rows(columns)[1])
    if sequences == "events":
        header = ["user_id:token", "item_id:token", "timestamp:float", *(["query:token"] if "query" in events else [])]
        put_raw(folder / f"Beauty.inter{gz}", header, columns_to_rows(events)[1])
        return
    rows = [[user, " ".join(ids)] for user, ids in zip(lists["user_id"], lists["item_ids"], strict=True)]
    header = ["user_id:token", "item_seq:token_seq"]
    if sequences == "with a target":
        header = ["user_id:token", "item_id_list:token_seq", "item_id:token"]
        rows = [
            [user, " ".join(ids[:-1]), ids[-1]] for user, ids in zip(lists["user_id"], lists["item_ids"], strict=True)
        ]
    put_raw(folder / f"Beauty.inter{gz}", header, rows)


def same(read: Dataset, written: Dataset, queries: bool = True) -> None:
    assert read.items.item_ids == written.items.item_ids
    assert read.items.levels == written.items.levels
    assert read.items.attributes == written.items.attributes
    for name in ("sids", "embeddings"):
        one, other = getattr(read.items, name), getattr(written.items, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert read.interactions.user_ids == written.interactions.user_ids
    assert read.interactions.rows.dtype == np.int32 and read.interactions.offsets.dtype == np.int64
    np.testing.assert_array_equal(read.interactions.offsets, written.interactions.offsets)
    np.testing.assert_array_equal(read.interactions.rows, written.interactions.rows)
    if queries and written.interactions.queries is not None:
        assert read.interactions.queries is not None
        assert read.interactions.queries.equals(written.interactions.queries)
    else:
        assert read.interactions.queries is None


def read_back(write: Callable[[Path], None]) -> Dataset:
    with TemporaryDirectory() as folder:
        write(Path(folder))
        lines: list[str] = []
        dataset = read_dataset(folder, lines.append)
        assert len(lines) == 1, lines  # everything is used
        return dataset


ROUNDS = settings(max_examples=40)


@given(datasets(), st.sampled_from(["", "Beauty.", "Amazon.2023."]), st.sampled_from(["", ".gz"]), st.data())
@ROUNDS
def test_json_form_round_trip(dataset: Dataset, prefix: str, gz: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*NOTATIONS, *LISTS]))
    notation = (NOTATIONS | LISTS)[name]
    same(read_back(lambda folder: write_json_form(folder, dataset, prefix, gz, notation)), dataset, queries=False)


@given(
    datasets(), st.sampled_from([".csv", ".tsv", ".csv.gz", ".tsv.gz"]), st.sampled_from(list(NOTATIONS)), st.booleans()
)
@ROUNDS
def test_text_tables_round_trip(dataset: Dataset, ending: str, name: str, listed: bool) -> None:
    same(read_back(lambda folder: write_tables(folder, dataset, ending, NOTATIONS[name], listed)), dataset)


@given(
    datasets(),
    st.sampled_from([".parquet", ".jsonl", ".jsonl.gz"]),
    st.sampled_from([*NOTATIONS, *LISTS]),
    st.booleans(),
)
@ROUNDS
def test_typed_tables_round_trip(dataset: Dataset, ending: str, name: str, listed: bool) -> None:
    notation = (NOTATIONS | LISTS)[name]
    same(read_back(lambda folder: write_tables(folder, dataset, ending, notation, listed)), dataset)


@given(
    datasets(),
    st.sampled_from(["", ".gz"]),
    st.sampled_from(["events", "sequences", "with a target"]),
    st.sampled_from(list(NOTATIONS)),
)
@ROUNDS
def test_atomic_files_round_trip(dataset: Dataset, gz: str, sequences: str, name: str) -> None:
    plain = str.maketrans("\n\t", "  ")  # a line is a row there
    titles = [title.translate(plain) for title in dataset.items.attributes["title"]]
    queries = dataset.interactions.queries
    if queries is not None:
        queries = pa.array([query.translate(plain) for query in queries.to_pylist()], pa.large_string())
    items, inter = dataset.items, dataset.interactions
    dataset = Dataset(
        ItemTable(items.item_ids, items.sids, items.levels, items.embeddings, {"title": titles}),
        Interactions(inter.user_ids, inter.offsets, inter.rows, queries),
    )
    read = read_back(lambda folder: write_atomic(folder, dataset, gz, sequences, NOTATIONS[name]))
    same(read, dataset, queries=sequences == "events")


@given(datasets())
@ROUNDS
def test_forms_may_be_mixed(dataset: Dataset) -> None:
    """Atomic interactions, semantic IDs of an index file, texts of a table."""
    items, *_ = parts(dataset)

    def write(folder: Path) -> None:
        write_atomic(folder, dataset, "", "sequences", NOTATIONS["3-7-4"])
        (folder / "Beauty.item").unlink()
        index = {item: LISTS["[3, 7]"](codes) for item, codes in zip(items["item_id"], items["sid"], strict=True)}
        put(folder / "Beauty.index.json", json.dumps(index))
        shuffled = {name: values[::-1] for name, values in items.items() if name != "sid"}
        pq.write_table(pa.table(shuffled), folder / "items.parquet")

    same(read_back(write), dataset, queries=False)


# --- what nearly fits

INDEX = {"x": ["<a_1>", "<b_2>"], "y": ["<a_0>", "<b_5>"], "z": ["<a_1>", "<b_2>"]}
INTER = {"u": ["x", "y", "z"], "v": ["y"]}
EVENTS = "user_id,item_id,timestamp\nu,x,1\nu,y,2\nu,z,3\nv,y,1\n"
ITEMS = "item_id,sid\nx,1-2\ny,0-5\nz,1-2\n"
ATOMIC = "user_id:token\titem_id:token\ttimestamp:float\nu\tx\t1.0\nu\ty\t2.0\nu\tz\t3.0\nv\ty\t1\n"
ATOMIC_ITEMS = "item_id:token\tsid:token_seq\nx\t1 2\ny\t0 5\nz\t1 2\n"
AUGMENTED = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
LINES = '{"user_id": "u", "item_ids": ["x", "y", "z"]}\n{"user_id": "v", "item_ids": ["y"]}\n'


def folder_of(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        if value is None:
            (folder / name).mkdir()
        else:
            put(folder / name, value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"Beauty.inter.json": INTER, "Beauty.index.json": INDEX},
        {"inter.json": INTER, "Beauty.index.json.gz": INDEX},
        {"inter.json": "\ufeff" + json.dumps(INTER), "index.json": INDEX},
        {"inter.json": INTER, "items.csv": ITEMS},
        {"Beauty.inter": ATOMIC, "Beauty.item": ATOMIC_ITEMS},
        {"Beauty.inter": ATOMIC.replace("\n", "\r\n"), "Beauty.index.json": INDEX},
        {"Beauty.inter": ATOMIC, "items.csv": ITEMS},
        {"inter.jsonl": LINES, "items.csv": ITEMS},
        {"interactions.jsonl": LINES.replace("item_ids", "bought"), "items.csv": ITEMS},  # the only list there
        {"interactions.csv": "user_id,items\nu,\"['x', 'y', 'z']\"\nv,[y]\n", "items.csv": ITEMS},
        {"interactions.csv": 'user_id,items\nu,"x,y,z"\nv,y\n', "items.csv": ITEMS},
        {"interactions.csv": 'user_id,items\nu,"x, y, z"\nv,y\n', "items.csv": ITEMS},
        {"interactions.csv": 'user_id,items,timestamps\nu,y x z,"[2,1,3]"\nv,y,9\n', "items.csv": ITEMS},
        {
            "interactions.csv": "user_id,items,timestamps\nu,y x z,2024-01-02 2024-01-01 2024-02-01\nv,y,2024-01-01\n",
            "items.csv": ITEMS,
        },
        {"interactions.csv": EVENTS, "items.csv": ITEMS.replace("\ny,", "\ny,0-5").replace("0-50-5", "0-5")},
        {"interactions.csv": EVENTS, "items.csv": "item_id,sid_0,sid_1\nx,<a_1>,<b_2>\ny,<a_0>,<b_5>\nz,<a_1>,<b_2>\n"},
        {"interactions.csv": EVENTS, "items.csv": "item_id,sid_0,sid_1\nx,1,2\ny,0,5\nz,1,2\n"},
        {"interactions.csv": EVENTS, "items.csv": 'item_id,sid\nx,"[1, 2]"\ny,"(0, 5)"\nz,"1;2"\n'},
        {"interactions.csv": EVENTS, "item.json": {"x": {"sid": "1-2"}, "y": {"sid": [0, 5]}, "z": {"sid": "1 2"}}},
        {
            "interactions.csv": EVENTS,
            "item.jsonl": "".join(json.dumps({"item_id": item, "sid": sid}) + "\n" for item, sid in INDEX.items()),
        },
    ],
    ids=lambda files: ", ".join(files),
)
def test_what_nearly_fits_is_read(tmp_path: Path, files: dict[str, Any]) -> None:
    if "item.json" in files:  # notations of one column must agree
        files["item.json"]["y"]["sid"] = "0-5"
    dataset = read_dataset(folder_of(tmp_path, files))
    assert sequences(dataset) == INTER
    assert dataset.items.item_ids == ["x", "y", "z"]
    assert dataset.items.sids is not None and dataset.items.sids.tolist() == [[1, 2], [0, 5], [1, 2]]
    assert dataset.items.levels == (2, 8)


def test_titles_beside_an_index_become_attributes(tmp_path: Path) -> None:
    texts = {
        "y": {"title": "The Volt", "price": 3.5, "tags": ["a"], "sale": True},
        "x": {"title": None, "price": "free", "tags": [], "item_id": 7},
        "old": {"title": "Gone", "description": ["a", "b"]},
        "worn": {"description": "a"},
    }
    lines: list[str] = []
    files = {"Beauty.inter.json": INTER, "Beauty.index.json": INDEX, "Beauty.item.json": texts}
    dataset = read_dataset(folder_of(tmp_path, files), lines.append)
    assert dataset.items.item_ids == ["x", "y", "z"]
    assert dataset.items.attributes == {
        "title": ["", "The Volt", ""],
        "price": ["free", "3.5", ""],
        "sale": ["", "true", ""],
    }
    assert lines[0] == (
        "data: Beauty.inter.json (interactions: JSON), Beauty.item.json (items: JSON), Beauty.index.json "
        "(semantic IDs: JSON); 2 users, 4 interactions, 3 items"
    )
    for part in (
        "'item_id' in Beauty.item.json, where the keys are the ids",
        "'description' of Beauty.item.json, which mixes lists and single values",
        "2 items of Beauty.item.json, such as 'old', that Beauty.index.json does not list",
        "texts of 1 items, such as 'z', that Beauty.item.json does not list",
    ):
        assert part in lines[1]
    put(tmp_path / "Beauty.item.json", json.dumps({"x": "Tent", "y": "Volt", "z": ""}))
    assert read_dataset(tmp_path).items.attributes == {"title": ["Tent", "Volt", ""]}


def test_what_is_not_used_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "interactions.csv": "user_id,item_id,timestamp,rating,note\nu,x,1,5,a\nv,y,1,3,b\n",
        "items.csv": ",item_id,title,sid\n0,x,A,1 2\n1,y,B,3 4\n",
        "Beauty.emb.npy": "",
        "README.md": "",
        "Beauty.train.inter": ATOMIC,
        "cache": None,
        ".hidden": "",
    }
    lines: list[str] = []
    dataset = read_dataset(folder_of(tmp_path, files), lines.append)
    assert dataset.items.attributes == {"title": ["A", "B"]}
    assert lines[1] == (
        "not used: files Beauty.emb.npy, Beauty.train.inter, README.md, cache/; column '' of items.csv, an index that "
        "pandas wrote; columns 'rating', 'note' of interactions.csv"
    )
    read_dataset(tmp_path)
    assert lines[1] in caplog.text  # a warning where nobody asked for the lines


def test_users_without_interactions_are_named(tmp_path: Path) -> None:
    lines: list[str] = []
    inter = {"u": ["x"], **{f"none{i}": [] for i in range(12)}}
    read_dataset(folder_of(tmp_path, {"inter.json": inter, "index.json": INDEX}), lines.append)
    assert "12 users of inter.json without interactions (none0, none1, none2" in lines[1]
    assert lines[1].endswith("none9 and 2 more)")


CSV = {"interactions.csv": EVENTS, "items.csv": ITEMS}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        # names
        ({"scores.csv": "", "films.csv": ""}, "no data found; .*the folder holds films.csv, scores.csv: rename"),
        ({"interactions.json": "", "items.csv": ITEMS}, r"interactions\.json looks like a table.*to_json\('inter"),
        ({"interactions.xlsx": "", "items.csv": ITEMS}, r"interactions\.xlsx is in no form that is read: write it as"),
        ({"interactions.parquet.gz": "", "items.csv": ITEMS}, r"interactions\.parquet\.gz is in no form that is read"),
        ({"B.train.inter": "", "B.test.inter": "", "B.item": ""}, r"B\.inter: missing; RecBole's files need.*B\.t"),
        ({"B.inter": ATOMIC}, r"B\.item: missing; RecBole's files need both NAME\.inter and NAME\.item"),
        ({"interactions.csv": EVENTS}, r"items\.parquet: missing, and so are items\.csv, items\.tsv, items\.jsonl"),
        ({"Beauty.inter.json": INTER}, r"Beauty\.index\.json: missing; this form of data needs both"),
        ({"A.inter.json": INTER, "B.index.json": INDEX}, r"two datasets, of A\.inter\.json and of B\.index\.json"),
        ({"inter.json": INTER, "A.inter": ATOMIC, "index.json": INDEX}, r"both A\.inter and inter\.json, and each has"),
        ({**CSV, "index.json": INDEX}, r"both items\.csv and index\.json have semantic IDs; drop one"),
        (
            {"inter.json": INTER, "index.json": INDEX, "item.json": {"0": "Tent"}},
            r"item\.json: has none of the items of index\.json \(item '0' here, 'x' there\)",
        ),
        # JSON
        ({"inter.json": '{"u": ["x"]}\n{"v": ["y"]}\n', "index.json": INDEX}, "JSON Lines belong into a file.*jsonl"),
        ({"inter.json.gz": INTER, "index.json": INDEX}, None),
        ({"inter.json": INTER, "index.json": INDEX, "item.json": {"x": 3}}, "item 'x' has 3; expected an object"),
        ({"inter.json": INTER, "index.json": {**INDEX, "y": {"a": 1}}}, "item 'y' has {'a': 1}; expected a list"),
        ({"inter.json": INTER, "index.json": {**INDEX, "y": "\ud800"}}, r"item 'y' has '\\ud800', which is not valid"),
        ({"inter.json": INTER, "index.json": {**INDEX, "y": "0-5"}}, "item 'y' has the code '0-5'; expected the form"),
        ({"inter.json": INTER, "index.json": {"x": "1-2", "y": ["<a_0>", "<b_5>"]}}, "item 'y' has the code '<a_0>'"),
        ({"inter.json": INTER, "index.json": {"x": [1, 2], "y": [True, 2]}}, "item 'y' has .True, 2.; expected a list"),
        ({"inter.json": INTER, "index.json": {"x": "1-2", "y": "1-2-3"}}, "item 'y' has 3 codes and item 'x' has 2"),
        ({"inter.json": INTER, "index.json": {"x": "<sid_1><sid_2>"}}, "level letter 'sid' in place 1"),
        ({"inter.json": INTER, "index.json": {**INDEX, "y": "<|sid_begin|><|sid_end|>"}}, "item 'y' has no codes"),
        ({"inter.json": INTER, "index.json": {"x": "7-8", "y": "7-9999999999"}}, "'y' has the code 9999999999 at"),
        # tables
        ({**CSV, "items.csv": "item_id,sid\nx,1-2\ny,0-q\n"}, r"item 'y' has the code 'q' in '0-q'; .* as '3-7-4'"),
        ({**CSV, "items.csv": "item_id,sid\nx,1-2\ny,\n"}, "item 'y' has no codes; expected a semantic ID such as"),
        ({**CSV, "items.csv": "item_id,sid\nx,1--2\ny,1-2\n"}, "item 'x' has the code -2 at level 1"),
        ({**CSV, "items.csv": "item_id,sid_0\nx,1\ny,z\n"}, "item 'y' has the code 'z'"),
        ({**CSV, "items.csv": "item_id,sid_0\nx,1\ny,1.5\n"}, "item 'y' has 1.5 in 'sid_0'; expected a whole number"),
        ({**CSV, "items.csv": "item_id,sid,embedding\nx,1,0.5 1\ny,2,0.1 ...\n"}, "item 'y' has '...' in 'embedding'"),
        ({**CSV, "interactions.csv": "a;b\n1;2\n"}, r"columns: a;b\); the columns are separated by something else"),
        ({**CSV, "interactions.csv": "user_id:token,item_id:token\n1,2\n"}, "this is RecBole's form: name the files"),
        ({**CSV, "interactions.csv": "uid,item_id,timestamp\n1,2,3\n"}, r"no column 'user_id' \(columns: uid, item_id"),
        ({"interactions.csv.gz": EVENTS, "items.csv": ITEMS}, None),
        ({"interactions.jsonl": '[{"user_id": 1}]', "items.csv": ITEMS}, "line 1 holds a JSON list; expected"),
        ({"interactions.jsonl": "", "items.csv": ITEMS}, r"interactions\.jsonl: cannot be read \(empty JSON file\)"),
        # RecBole
        ({"B.inter": ATOMIC.replace("\t", ","), "B.item": ATOMIC_ITEMS}, r"B\.inter: column .* has no type; .* tab"),
        ({"B.inter": ATOMIC.replace("item_id", "thing"), "B.item": ATOMIC_ITEMS}, "no column 'item_id' .*thing"),
        ({"B.inter": ATOMIC.replace("3.0", "late"), "B.item": ATOMIC_ITEMS}, r"B\.inter: cannot be read .*'late'"),
        ({"B.inter": ATOMIC.replace("3.0", ""), "B.item": ATOMIC_ITEMS}, "data row 3 has no timestamp"),
        (
            {"B.inter": f"{AUGMENTED}u\tx\ty\nu\tx y\tz\n", "B.item": ATOMIC_ITEMS},
            "data row 2 repeats user 'u'; give every user one row with the whole list, e.g. the longest of the rows",
        ),
        # one row per user
        ({**CSV, "interactions.csv": "user_id,items\nu,x q\n"}, r"user 'u' has item 'q', which items\.csv does not"),
        ({**CSV, "interactions.csv": "user_id,items\nu,\"['x' 'y']\"\n"}, r"data row 1 has .* in 'items'; write"),
        ({**CSV, "interactions.csv": 'user_id,items\nu,"[x, y"\n'}, "data row 1 has '.x, y' in 'items'; write"),
        ({**CSV, "interactions.csv": 'user_id,items\nu,"[null, ""x""]"\n'}, "data row 1 has .* in 'items'"),
        ({**CSV, "interactions.csv": "user_id,items\nu,\n"}, "no interactions; every user's list is empty"),
        ({**CSV, "interactions.csv": "user_id,items\n"}, "no rows"),
        ({**CSV, "interactions.csv": "user_id,items,history\nu,x,y\n"}, "columns .'items', 'history'. may all hold"),
        ({**CSV, "interactions.csv": "user_id,items,timestamps\nu,x y,1\n"}, "user 'u' has 1 values in 'timestamps'"),
        ({**CSV, "interactions.csv": "user_id,items,timestamps\nu,x y,1 soon\n"}, "user 'u' has 'soon' in"),
        ({**CSV, "interactions.csv": "user_id,items,timestamps\nu,x y,1 nan\n"}, "user 'u' has timestamps nan"),
        ({"interactions.jsonl": '{"user_id": "u", "items": [1.5]}\n', "items.csv": ITEMS}, "holds lists of double"),
        ({"interactions.jsonl": '{"user_id": "u", "items": ["x", null]}', "items.csv": ITEMS}, "'u' has an empty"),
        ({"interactions.jsonl": '{"user_id": "u", "items": 5}', "items.csv": ITEMS}, "'items' is int64; expected"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, files: dict[str, Any], message: str | None
) -> None:
    folder_of(tmp_path, files)
    if message is None:  # packed in name only
        packed = next(path for path in tmp_path.iterdir() if path.suffix == ".gz")
        packed.write_bytes(b"not packed")
        message = rf"{packed.name}: cannot be read \("
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_types_of_other_writers(tmp_path: Path) -> None:
    """Lists of fixed size and of large text, categories, a text in a column that is called timestamp."""
    lists = pa.array([["x", "y", "z"], ["y", "y", "x"]], pa.list_(pa.large_string(), 3))
    pq.write_table(pa.table({"user_id": ["u", "v"], "item_id": lists}), tmp_path / "interactions.parquet")
    sids = pa.array(["1-2", "0-5", "1-2"]).dictionary_encode()
    items = {"item_id": ["x", "y", "z"], "sid": sids, "timestamp": ["2024-01-01", "2024-01-02", "NA"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    dataset = read_dataset(tmp_path)
    assert sequences(dataset) == {"u": ["x", "y", "z"], "v": ["y", "y", "x"]}
    assert dataset.items.sids is not None and dataset.items.sids.tolist() == [[1, 2], [0, 5], [1, 2]]
    for ending, write in ((".jsonl", put_lines), (".csv", write_text_table)):
        (tmp_path / "items.parquet").unlink(missing_ok=True)
        dated = {"item_id": ["x", "y", "z"], "timestamp": ["2024-01-01", "2024-01-02", "2024-01-03"]}
        write(tmp_path / f"items{ending}", dated)
        assert read_dataset(tmp_path).items.attributes == {"timestamp": dated["timestamp"]}
        (tmp_path / f"items{ending}").unlink()
