"""Values as files write them: nothing of a value is lost, added or taken for something else."""

from __future__ import annotations

from pathlib import Path

import pytest

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
