"""Times: in one order whatever the notation, and what is none is named with its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec_builders.data.times import read_times

FILE = Path("a.csv")


def read(values: list | pa.Array) -> np.ndarray:
    return read_times(FILE, pa.array(values), "timestamp", lambda at: f"data row {at + 1}")


# --- text

ZONES = {"": 0, "Z": 0, "+00:00": 0, "+02:00": 2, "-0330": -3.5, "+09": 9}


def _written(at: np.datetime64, zone: str, separator: str, digits: str) -> tuple[str, np.datetime64]:
    text = str(at.astype(f"M8[{digits}]"))
    if digits == "D":
        return text, np.datetime64(text)
    hours = np.timedelta64(int(ZONES[zone] * 60), "m")
    return text.replace("T", separator) + zone, np.datetime64(text) - hours


TIMES = st.builds(
    _written,
    st.integers(0, 2**31).map(lambda at: np.datetime64(at, "s")),
    st.sampled_from(list(ZONES)),
    st.sampled_from("T "),
    st.sampled_from(["D", "m", "s", "ms", "us", "ns"]),
)


@given(st.lists(TIMES, min_size=1, max_size=6))
def test_texts_with_and_without_a_zone_are_read_as_utc(times: list[tuple[str, np.datetime64]]) -> None:
    assert (read([text for text, _ in times]) == np.array([at for _, at in times])).all()


GOOD, DAY = "2001-01-01T00:00:00Z", "2001-01-01"


@pytest.mark.parametrize(
    ("texts", "at", "why"),
    [
        ([GOOD, "2001-13-01T00:00:00Z"], 1, "no time; write Unix time"),
        ([GOOD, DAY, "2001-13-01", DAY], 2, "no time"),
        ([DAY, GOOD, "2001-01-01 00:00:00 PM"], 2, "no time"),
        (["2001-13-01", DAY], 0, "no time"),
        (["1", "2.5", "soon", "3"], 2, "no time"),
        (["1", "2.5", DAY, "3"], 2, "not written as '1' of data row 1 is"),
        ([GOOD, DAY, "978300761"], 2, "not written as '2001-01-01T00:00:00Z' of data row 1 is"),
        (["2001-01-01T00:00:00.123456789", DAY, "2300-01-01", DAY], 2, "not written as"),  # beyond nanoseconds
        (["soon", "later"], 0, "no time"),
        ([DAY] * 1000 + ["x"] + [GOOD] * 1000, 1000, "no time"),
    ],
)
def test_a_text_that_is_no_time_is_named_with_its_row(texts: list[str], at: int, why: str) -> None:
    message = rf"a\.csv: data row {at + 1} has '{texts[at]}' in 'timestamp', which is {why}"
    with pytest.raises(DataError, match=message):
        read(texts)
    with pytest.raises(DataError, match=message):
        read(pa.array(texts).dictionary_encode())
