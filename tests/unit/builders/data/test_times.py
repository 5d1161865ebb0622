"""Times: in one order whatever the notation, and what is none is named with its row."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import DataError
from genrec_builders.data import Interactions, read_dataset, split_by_time
from genrec_builders.data.times import UNITS, joined_times, moment_among, read_times

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


# --- numbers

WHEN = {"s": 978_300_761, "ms": 978_300_761_123, "us": 978_300_761_123_456, "ns": 978_300_761_123_456_789}


def join(*parts: list) -> np.ndarray:
    return joined_times(FILE, "timestamp", [np.array(part) for part in parts], lambda at: f"data row {at + 1}")


@pytest.mark.parametrize(("one", "other"), list(permutations(WHEN, 2)))
@pytest.mark.parametrize("kind", [int, float])
def test_times_in_two_units_are_refused(one: str, other: str, kind: type) -> None:
    first, second = (kind(WHEN[unit]) for unit in (one, other))
    with pytest.raises(DataError) as caught:
        join([0, first], [first + 1, second, first])
    assert str(caught.value).startswith("a.csv: data row ") and "write all of them in one unit" in str(caught.value)
    for row, time, unit in ((2, first, one), (4, second, other)):
        assert f"data row {row} has " in str(caught.value) and f"{time}, which looks like {UNITS[unit]}" in str(
            caught.value
        )


@pytest.mark.parametrize(
    "times",
    [
        *([at, at + 1, at + 86_400] for at in WHEN.values()),
        [0, 1, 2, 10**6],
        [1999, 2000, 2001],
        [20_240_501, 20_240_502],
        [0, -1, WHEN["ms"]],  # no time, before 1970
        [3 * 10**7, WHEN["s"]],  # 1970
        [3 * 10**7, WHEN["ms"]],  # 1970 as well
        list(range(0, 4 * 10**12, 10**10)),  # a clock that began at 0
        [WHEN["s"], 253_402_300_799],  # the year 9999
    ],
    ids=str,
)
def test_times_in_one_unit_are_read(times: list[int]) -> None:
    if len(times) < 10:
        assert join(times[:1], times[1:]).tolist() == times
    floats = [float(time) for time in times]
    assert join(floats).tolist() == floats


def test_the_user_whose_times_are_in_two_units_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\nx\n")
    text = f"user_id\titem_ids\ttimestamps\nu\tx x\t5 {WHEN['s']}\nv\tx\t{WHEN['ms']}\n"
    (tmp_path / "interactions.tsv").write_text(text)
    with pytest.raises(
        DataError, match=r"user 'u' has timestamps 978300761, which looks like seconds, and user 'v' has"
    ):
        read_dataset(tmp_path)


def test_decimals_of_nanoseconds_keep_their_order() -> None:
    times = [WHEN["ns"] + at for at in (2, 0, 1)]
    assert read(pa.array([Decimal(time) for time in times], pa.decimal128(38, 0))).tolist() == times
    assert read(pa.array([Decimal("1.5"), Decimal("-1")], pa.decimal128(9, 2))).tolist() == [1.5, -1.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("times", "given"),
    [
        (["1", "9223372036854775808"], "9.22"),
        (["1", "-9223372036854775808"], "-9223372036854775808"),
        (pa.array([1.0, -1e19]), "-1e"),
        (pa.array([1.0, float("inf")]), "inf"),
        (pa.array([1, -(2**63)], pa.timestamp("us")), "-9223372036854775808"),
        (pa.array([1, -(2**63)], pa.timestamp("ns", "UTC")), "-9223372036854775808"),
    ],
)
def test_a_time_beyond_64_bits_is_refused(times: list | pa.Array, given: str) -> None:
    with pytest.raises(DataError, match=rf"data row 2 has timestamp {given}.*; give a finite time that 64 bits hold"):
        read(times)


# --- moments to split at


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
@given(st.datetimes(), st.integers(-2, 2))
@settings(max_examples=40)
def test_a_moment_divides_times_of_every_unit(unit: str, moment: datetime, near: int) -> None:
    """Against whole numbers of Python, which have no end."""
    per_day = {"D": 1, "s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}[unit]
    since = moment - datetime(1970, 1, 1)
    exact = (
        Fraction(since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds, 86_400_000_000) * per_day
    )
    most = 2**63 - 2
    times = np.array([max(min(at, most), -most) for at in (math.floor(exact) + near, 0, -most, most)])
    expected = [int(time) < exact for time in times]
    assert (
        times.astype(f"M8[{unit}]") < moment_among(moment.isoformat(), times.astype(f"M8[{unit}]"))
    ).tolist() == expected


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("9999-01-01", [True, True]), ("1700000000000000002", [True, False]), ("1700000000000000001", [False, False])],
)
def test_moments_among_nanoseconds(moment: str, expected: list[bool]) -> None:
    times = np.array([1_700_000_000_000_000_001, 1_700_000_000_000_000_002])
    assert (times < moment_among(moment, times)).tolist() == expected


def test_a_moment_after_all_nanoseconds_says_so() -> None:
    times = np.array([WHEN["ns"], WHEN["ns"] + 1])
    for each in (times, times.astype("M8[ns]")):
        inter = Interactions(["u"], np.array([0, 2]), np.zeros(2, np.int32), None, each)
        with pytest.raises(DataError, match="all interactions lie before it"):
            split_by_time(inter, "9999-01-01")
