"""A base is the same, byte by byte, however many parts it is made in, and is what a plain sort of its items makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.arrays import in_folder
from genrec.catalog import CatalogBase, PrefixTable, SemanticIdSpace
from genrec.catalog.arranged import COLUMNS

SPACES = tuple(map(SemanticIdSpace, ((4, 3, 5), (256, 256, 256, 300), (3, 600, 5))))  # the second needs 64 bits
NAMES = ("codes", "popularity", "item_ids", "popular_rows", "code_keys", "code_rows", "id_keys", "id_rows")
Item = tuple[bytes, int, int, bool]


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[SemanticIdSpace, list[list[Item]]]:
    """A space, and batches of items. Codes are drawn from a few, or all in one place; popularities meet often."""
    space = draw(st.sampled_from(SPACES))
    code = st.one_of(st.integers(0, space.size - 1), st.sampled_from([0, 1, space.size - 1]))
    ids = draw(st.lists(st.binary(min_size=1, max_size=20).filter(_is_id), max_size=60, unique=True))
    item = st.tuples(code, st.one_of(st.integers(0, 3), st.integers(0, 2**62)), st.booleans())
    items = [(item_id, *draw(item)) for item_id in ids]
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=5)))
    return space, [items[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def _is_id(name: bytes) -> bool:
    return not name.endswith(b"\0")


def columns_of(items: list[Item]) -> dict[str, np.ndarray]:
    ids, codes, popularity, available = zip(*items, strict=True) if items else ([],) * 4
    return {
        "item_ids": np.array(ids, np.bytes_) if items else np.empty(0, "S1"),
        "codes": np.array(codes, np.int64),
        "popularity": np.array(popularity, np.int64),
        "available": np.array(available, np.int8),
    }


def build(space: SemanticIdSpace, items: list[Item]) -> CatalogBase:
    return CatalogBase.build(space, *(columns_of(items)[name] for name in COLUMNS))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(catalogues(), st.integers(1, 70))
def test_a_base_in_parts_is_the_base_at_once(
    tmp_path_factory: pytest.TempPathFactory, catalogue: tuple[SemanticIdSpace, list[list[Item]]], part: int
) -> None:
    space, batches = catalogue
    items = [item for batch in batches for item in batch]
    folder, scratch, whole = (tmp_path_factory.mktemp("base") / name for name in ("parts", "scratch", "whole"))
    written = CatalogBase.write(folder, space, map(columns_of, batches), scratch, part)
    build(space, items).save(whole)
    assert files(folder) == files(whole) and sorted(files(whole)) == sorted(f"{name}.npy" for name in NAMES)
    assert not list(scratch.iterdir())

    live = sorted((item for item in items if item[3]), key=lambda item: (item[1], -item[2]))
    rows = live + [item for item in items if not item[3]]
    for base in (written, CatalogBase.load(folder, space)):
        assert base.live == len(live)
        found = (base.item_ids.tolist(), base.codes.tolist(), base.popularity.tolist())
        assert found == (*([item[at] for item in rows] for at in range(3)),)
        popular = sorted((item for item in items if item[3]), key=lambda item: -item[2])
        assert [rows[row][0] for row in base.popular_rows] == [item[0] for item in popular]
        wanted = np.empty(len(rows) + 1, object)
        wanted[:] = [item[0] for item in rows] + [b"never"]
        assert base.rows_of(wanted).tolist() == [*range(len(rows)), -1]
        codes = [item[1] for item in live]
        asked = np.array([*codes, space.size - 2], np.int64)
        assert base.first_rows(asked).tolist() == [codes.index(code) if code in codes else -1 for code in asked]


@given(catalogues(), st.integers(1, 70), st.integers(0, 3000))
def test_masks_in_parts_are_the_masks_at_once(
    tmp_path_factory: pytest.TempPathFactory, catalogue: tuple[SemanticIdSpace, list[list[Item]]], part: int, spare: int
) -> None:
    space, batches = catalogue
    codes = np.array([item[1] for batch in batches for item in batch], np.int64)
    folder, whole = (tmp_path_factory.mktemp("masks") / name for name in ("parts", "whole"))
    in_parts = PrefixTable.build(space, codes, spare, in_folder(folder), part)
    PrefixTable.build(space, np.unique(codes), spare).save(whole)
    assert files(folder) == files(whole)
    assert in_parts.allows(codes).all()


@pytest.mark.parametrize("part", [1, 3, 100])
def test_items_that_make_no_base_are_refused(tmp_path: Path, part: int) -> None:
    space = SPACES[0]
    items: list[Item] = [(f"i{number}".encode(), number, number, number % 3 > 0) for number in range(20)]

    def write(*more: Item) -> Any:
        batches = map(columns_of, ([*items, *more][start : start + 7] for start in range(0, 28, 7)))
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return CatalogBase.write(folder, space, batches, folder / "scratch", part)

    assert len(write()) == 20
    for again in ((b"i4", 9, 1, True), (b"i4", 4, 4, False)):
        with pytest.raises(ValueError, match="item id 'i4' occurs more than once; give each item once"):
            write(again)
    for code in (-1, space.size):
        with pytest.raises(ValueError, match=f"code {code} is outside the space of levels"):
            write((b"new", code, 1, True))


def test_what_the_batches_raise_goes_through(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield columns_of([(b"a", 1, 1, True)])
        raise OSError("the store is away")

    with pytest.raises(OSError, match="away"):
        CatalogBase.write(tmp_path / "base", SPACES[0], broken(), tmp_path / "scratch")
