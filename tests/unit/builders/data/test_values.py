"""Values as files write them: nothing of a value is lost, added or taken for something else."""

from __future__ import annotations

from pathlib import Path

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
