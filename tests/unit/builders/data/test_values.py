"""Values as files write them: nothing of a value is lost, added or taken for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.errors import DataError
from genrec_builders.data import Dataset, read_dataset
from tests.histories import sequences


def read(folder: Path, **files: str) -> Dataset:
    """The dataset of files, written without their dots: `interactions_csv`."""
    for name, text in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text, encoding="utf-8")
    return read_dataset(folder)


# --- quotation marks

NOTES = ["", '"Great', 'a 9" pan', '"Great"', '"', 'one "and" two', '"a""b"']


@pytest.mark.parametrize("form", ["recbole", "movielens"])
def test_a_quotation_mark_swallows_no_rows(form: str, tmp_path: Path) -> None:
    """A quotation mark that opens and one some rows later, as reviews and titles have them."""
    rows = [(f"u{at // 4}", f"i{at}", NOTES[at % 7]) for at in range(24)]
    if form == "recbole":
        inter = "".join(f"{user}\t{item}\t{at}\t{note}\n" for at, (user, item, note) in enumerate(rows))
        items = "".join(f"{item}\t{note}\n" for _, item, note in rows)
        dataset = read(
            tmp_path,
            s_inter="user_id:token\titem_id:token\ttimestamp:float\tquery:token_seq\n" + inter,
            s_item="item_id:token\ttitle:token_seq\n" + items,
        )
        assert dataset.interactions.queries is not None
        assert dataset.interactions.queries.to_pylist() == [note for *_, note in rows]
    else:
        dataset = read(
            tmp_path,
            ratings_dat="".join(f"{user}::{item}::{note}::{at}\n" for at, (user, item, note) in enumerate(rows)),
            movies_dat="".join(f"{item}::{note}::Drama\n" for _, item, note in rows),
        )
    assert dataset.items.attributes["title"] == [note for *_, note in rows]
    assert sequences(dataset) == {f"u{user}": [f"i{4 * user + at}" for at in range(4)] for user in range(6)}


# --- ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",x,9", "data row 41 has no user_id; fill it in or drop the row"),
        ("u,,9", "data row 41 has no item_id; fill it in or drop the row"),
        (f"u,{'x' * 129},9", "data row 41: item_id id 'x.* has 129 bytes; ids have 1 to 128"),
        ("u,x\0,9", r"data row 41: item_id id 'x.x00' ends in a NUL byte; strip it"),
    ],
)
@pytest.mark.parametrize("rows", [7, 1 << 20])  # at a time
def test_an_id_that_is_none_is_refused_with_its_row(
    row: str, message: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec_builders.data.interactions._ROWS", rows)
    monkeypatch.setattr("genrec_builders.data.table_files._BLOCK", 200)
    before = "".join(f"u{at},x,{at}\n" for at in range(40))
    with pytest.raises(DataError, match=rf"interactions\.csv: {message}"):
        read(
            tmp_path,
            interactions_csv=f"user_id,item_id,timestamp\n{before}{row}\n{row}\nu,x,10\n",
            items_csv="item_id\nx\n",
        )


@pytest.mark.parametrize("written", ['["x", ""]', "['', 'x']"])
def test_an_empty_item_in_a_list_is_refused_with_its_user(written: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="user 'v' has an empty value among the items; fill it in"):
        read(tmp_path, interactions_tsv=f"user_id\titem_ids\nu\tx\nv\t{written}\n", items_csv="item_id\nx\n")


# --- lists as text


@pytest.mark.parametrize(
    ("written", "items"),
    [
        ("10 , 20 , 30 , 40", "10 20 30 40"),
        ("10 ,20 ,30", "10 20 30"),
        (",10, 20,", "10 20"),
        ("10,20, 30,40", "10 20 30 40"),
        ("10, 20", "10 20"),
        ("[10 20\n 30]", "10 20 30"),
        ("a,b 10", "a,b 10"),  # ids may have commas
        ("10", "10"),
        ("['10', '...', '20']", "10 20"),  # an item that the catalogue lacks
    ],
)
def test_a_list_has_the_items_that_are_written(written: str, items: str, tmp_path: Path) -> None:
    ids = "".join(f'"{item}"\n' for item in ("a,b", 10, 20, 30, 40))
    dataset = read(tmp_path, interactions_csv=f'user_id,item_ids\nu,"{written}"\n', items_csv=f"item_id\n{ids}")
    assert sequences(dataset) == {"u": items.split()}


@pytest.mark.parametrize("written", ["[10 20 30 ... 20 30 40]", "[10, 20, ...]", "10 20 ... 30", "10, ..., 30"])
def test_a_list_that_was_shortened_is_refused(written: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data row 2 has .* in 'item_ids', a list that numpy or pandas shortened"):
        read(tmp_path, interactions_tsv=f"user_id\titem_ids\nv\t10 20\nu\t{written}\n", items_csv="item_id\n10\n20\n")


# --- item.json


def test_values_of_item_json_keep_their_types(tmp_path: Path) -> None:
    values: dict[str, tuple[list[Any], str | None]] = {
        "price": ([9.99, None, 3], "number"),
        "stock": ([1, None, 2], "number"),
        "new": ([True, False, None], "boolean"),
        "rating": ([float("nan"), 1.5, None], "number"),
        "mixed": ([1.5, "free", None], "string"),
        "flags": ([True, 1, None], "string"),
        "huge": ([2**70, 1, None], "string"),
        "colours": ([["a"], [], None], "strings"),
    }
    rows = {str(at): {name: given[at] for name, (given, _) in values.items()} for at in range(3)}
    lines = "".join(json.dumps({"item_id": item, **row}) + "\n" for item, row in rows.items())
    events = {"interactions_csv": "user_id,item_id,timestamp\nu,0,1\n"}
    items = read(tmp_path, **events, item_json=json.dumps(rows)).items
    assert dict(items.typed.kinds) == {name: kind for name, (_, kind) in values.items()}
    assert items.typed["price"].tolist() == [9.99, None, 3.0] and items.typed["new"].tolist() == [True, False, None]
    assert items.attributes["mixed"] == ["1.5", "free", ""] and items.attributes["flags"] == ["true", "1", ""]
    (tmp_path / "item.json").unlink()
    assert dict(read(tmp_path, **events, items_jsonl=lines).items.typed.kinds) == dict(items.typed.kinds)


def test_a_key_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    text = '{"0": {"title": "A"}, "1": {"a\\ud800": 1}}'
    with pytest.raises(DataError, match=r"item\.json: item '1' has the key 'a\\ud800', which is not valid Unicode"):
        read(tmp_path, interactions_csv="user_id,item_id,timestamp\nu,0,1\n", item_json=text)


# --- what nearly fits


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    files = {"ratings_dat": "\ufeffu::10::5::1\nu::20::5::2\n", "movies_dat": "\ufeff10::A::X\n20::B::Y\n"}
    dataset = read(tmp_path, **files)
    assert sequences(dataset) == {"u": ["10", "20"]} and dataset.items.item_ids == ["10", "20"]


def test_a_float_of_recbole_that_is_none_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "s_inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t10\t1\n",
        "s_item": "item_id:token\tprice:float\tweight:float\n10\t9.99\t1.5\n20\t$12.99\t2\n30\t\t\n",
    }
    items = read(tmp_path, **files).items
    assert dict(items.typed.kinds) == {"weight": "number"} and items.typed["weight"].tolist() == [1.5, 2.0, None]
    assert items.attributes == {"price": ["9.99", "$12.99", ""], "weight": ["1.5", "2", ""]}
    assert "column 'price' of s.item in rules: item '20': attribute 'price' is '$12.99', which is no" in caplog.text
    with pytest.raises(DataError, match=r"item '20': attribute 'price' is '.12\.99'.*give another --attribute-type"):
        read_dataset(tmp_path, attribute_types={"price": "number"})


def test_embeddings_of_other_shapes(tmp_path: Path) -> None:
    events = {"interactions_csv": "user_id,item_id,timestamp\nu,a,1\n"}
    for value in ("[[1, 2]]", '{"a": 1}'):
        with pytest.raises(
            DataError, match=r"items\.jsonl: column 'embedding' holds objects, or lists in lists; expected"
        ):
            read(tmp_path, **events, items_jsonl=f'{{"item_id": "a", "embedding": {value}}}\n')
    (tmp_path / "items.jsonl").unlink()
    for texts in (
        pa.array(["1 2", "[3, 4]"], pa.string_view()),
        pa.array([["1", "2"], ["3", "4"]], pa.list_(pa.string_view())),
    ):
        pq.write_table(pa.table({"item_id": ["a", "b"], "embedding": texts}), tmp_path / "items.parquet")
        embeddings = read_dataset(tmp_path).items.embeddings
        assert embeddings is not None and embeddings.tolist() == [[1, 2], [3, 4]]
    pq.write_table(
        pa.table({"item_id": ["a"], "embedding": pa.array(["1 b"], pa.string_view())}), tmp_path / "items.parquet"
    )
    with pytest.raises(DataError, match="item 'a' has 'b' in 'embedding'; expected a number"):
        read_dataset(tmp_path)


def test_hidden_files_are_no_second_ones(tmp_path: Path) -> None:
    files = {
        "s_inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t10\t1\n",
        "s_item": "item_id:token\n10\n",
        "._s_inter": "\0",
        "._s_item": "\0",
    }
    assert sequences(read(tmp_path, **files)) == {"u": ["10"]}
