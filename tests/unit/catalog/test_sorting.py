"""Rows come back in order, whatever they are cut into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog.sorting import Sorter, stable_order

KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=60)


@given(st.lists(st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)), max_size=40))
def test_equal_values_stay_as_they_stand(values: list[int]) -> None:
    assert stable_order(np.array(values, np.int64)).tolist() == sorted(range(len(values)), key=values.__getitem__)


@given(st.lists(KEYS, max_size=4), st.integers(1, 30), st.booleans(), st.integers(0, 2))
def test_rows_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], size: int, disk: bool, by: int
) -> None:
    folder = tmp_path_factory.mktemp("sorted") / "rows" if disk else None
    sorter = Sorter(("one", "other")[:by], size, folder)
    rows: list[tuple[int, int, bytes]] = []
    for number, batch in enumerate(batches):
        one, other = np.array(batch, np.int64).reshape(-1, 2).T
        names = np.array([f"{number}-{at}" * (1 + number) for at in range(len(batch))], np.bytes_)
        names = names if len(batch) else np.empty(0, "S1")
        sorter.add({"one": one.astype(np.uint32), "other": other, "name": names})
        rows += zip(one.tolist(), other.tolist(), names.tolist(), strict=True)
    assert len(sorter) == len(rows)
    merged = list(sorter.merged())
    found = [row for part in merged for row in zip(*(part[name].tolist() for name in part), strict=True)]
    assert found == sorted(rows, key=lambda row: row[:by])
    assert all(0 < len(part["one"]) <= size + len(rows) // size + 1 for part in merged)  # also where all are equal
    assert folder is None or not folder.exists()


@pytest.mark.parametrize("codes", [1, 2, 1 << 20])
def test_a_part_is_bounded_however_the_rows_are_spread(tmp_path: Path, codes: int) -> None:
    rng = np.random.default_rng(0)
    sorter = Sorter(("code",), 1024, tmp_path / "rows")
    for _ in range(40):
        sorter.add({"code": rng.integers(0, codes, 1500), "place": np.arange(1500)})
    sizes = [len(part["code"]) for part in sorter.merged()]
    assert sum(sizes) == 60_000 and max(sizes) < 1.2 * 1024
