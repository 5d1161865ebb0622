"""One catalogue of a file of items, one of embeddings and one of semantic IDs, in every combination."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from genrec.errors import DataError
from genrec_builders.data import ItemTable, read_dataset

EVENTS = "user_id,item_id,timestamp\nu,x,1\nu,y,2\nu,z,3\n"
ALL = "wxyz"


def read(folder: Path, **files: str) -> tuple[ItemTable, str]:
    """The catalogue, and what is said not to be used."""
    for path in folder.iterdir():
        path.unlink()
    for name, text in {"interactions_csv": EVENTS, **files}.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(text)
    lines: list[str] = []
    items = read_dataset(folder, lines.append).items
    return items, "".join(lines[1:])


def titles(items: str) -> str:
    return "item_id,title\n" + "".join(f"{item},{item.upper()}\n" for item in items)


def embeddings(items: str) -> str:
    return "item_id,embedding\n" + "".join(f"{item},{ALL.index(item)} 1\n" for item in items)


def index(items: str) -> str:
    return json.dumps({item: [ALL.index(item), 7] for item in items})


def test_each_file_gives_what_it_has_of_the_catalogue(tmp_path: Path) -> None:
    """Brute force: which items each file lacks."""
    for lacking in combinations(["wx", "y", "z", "wz", "", "w"], 3):
        listed, embedded, indexed = ("".join(item for item in ALL if item not in each) for each in lacking)
        files = {"items_csv": titles(listed), "embeddings_csv": embeddings(embedded)}
        items, unused = read(tmp_path, **files)
        assert items.item_ids == list(embedded) and items.embeddings is not None
        assert items.embeddings[:, 0].tolist() == [ALL.index(item) for item in embedded]
        assert items.attributes["title"] == [item.upper() if item in listed else "" for item in embedded]

        items, unused = read(tmp_path, **files, index_json=index(indexed))
        assert items.item_ids == list(indexed) and items.sids is not None
        assert items.sids[:, 0].tolist() == [ALL.index(item) for item in indexed]
        assert items.attributes["title"] == [item.upper() if item in listed else "" for item in indexed]
        assert ("texts of" in unused) == (not set(indexed) <= set(listed))
        assert ("of items.csv, such as" in unused) == (not set(listed) <= set(indexed))
        assert ("embeddings of embeddings.csv, which has none for" in unused) == (items.embeddings is None)
        assert (items.embeddings is not None) == (set(indexed) <= set(embedded))
        if items.embeddings is not None:
            assert items.embeddings[:, 0].tolist() == [ALL.index(item) for item in indexed]


def test_semantic_ids_of_the_items_stay_beside_embeddings(tmp_path: Path) -> None:
    items, unused = read(tmp_path, items_csv="item_id,sid\ny,0-1\nx,2-3\nz,1-1\n", embeddings_csv=embeddings("xyz"))
    assert items.sids is not None and items.sids.tolist() == [[2, 3], [0, 1], [1, 1]] and items.levels == (4, 4)
    assert items.embeddings is not None and items.embeddings[:, 0].tolist() == [1, 2, 3] and not unused
    with pytest.raises(DataError, match=r"items\.csv: has no semantic ID for 2 items of embeddings\.csv, such as 'y'"):
        read(tmp_path, items_csv="item_id,sid\nx,2-3\n", embeddings_csv=embeddings("xyz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,vector\nx,1 2\n", r"no column 'embedding' \(columns: item_id, vector\); add or rename it"),
        ("item_id\nx\n", r"no column 'embedding' \(columns: item_id\)"),
        ("id,embedding\nx,1 2\n", "no column 'item_id'"),
        ("item_id,embedding\nq,1 2\n", r"items\.csv: has none of the items of .*csv \(item 'x' here, 'q' there\)"),
    ],
)
def test_a_file_of_embeddings_has_them(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, items_csv=titles("xyz"), embeddings_csv=text)


def test_embeddings_in_numbered_columns_are_some(tmp_path: Path) -> None:
    items, _ = read(tmp_path, embeddings_csv="item_id,embedding_0,embedding_1\nx,1,2\ny,3,4\nz,5,6\n")
    assert items.embeddings is not None and items.embeddings.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_catalogue_says_what_it_does_not_use_once(tmp_path: Path) -> None:
    both = "item_id,embedding,colour\nx,1 2,red\ny,3 4,red\n"
    for files in ({}, {"index_json": index("xy")}):
        items, unused = read(tmp_path, items_csv=titles("xyz"), embeddings_csv=both, **files)
        assert items.attributes == {"title": ["X", "Y"]} and unused.count("columns 'colour' of embeddings.csv") == 1
        items, unused = read(tmp_path, embeddings_csv=both, **files)
        assert items.attributes == {"colour": ["red", "red"]} and "colour" not in unused
    with pytest.raises(DataError, match=r"both items\.csv and embeddings\.csv have embeddings; drop one"):
        read(tmp_path, items_csv=both, embeddings_csv=both, index_json=index("xy"))
