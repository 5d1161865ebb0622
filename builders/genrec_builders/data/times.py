"""When interactions were, as files write it: numbers, ISO 8601 text, dates and timestamps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError
from genrec_builders.data.checks import short
from genrec_builders.data.columns import is_text

_NUMBERS = (pa.int64(), pa.float64())
_MOMENTS = tuple(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC"))
_DATE = r"^\d{4}-\d\d-\d\d$"
_ZONE = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
# Numbers below so much are of that unit, since 1970: seconds until the year 5138, milliseconds until then on.
_UNITS = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NANOSECONDS = {"D": 86_400 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_CENTURY = (315_532_800, 4_102_444_800)  # seconds from 1970 to 1980, and to 2100
_LIMIT = 2**63
_REMEDY = "write Unix time as a number, or ISO 8601 dates that Arrow recognises, e.g. 2024-05-01 12:30:00"


def read_times(path: Path, array: pa.Array, name: str, place: Callable[[int], str]) -> np.ndarray:
    """int64, float64 or datetime64 [n] of a column `name`. place: where a value stands, in words.

    Raises DataError for a value that is missing, not finite or no time.
    """
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    texts = None
    if is_text(array.type):
        texts = array.cast(pa.large_string())
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
        array = _read_text(texts)
    if array.null_count:
        at = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: {place(at)} has no {name}; fill it in")
    if texts is not None and is_text(array.type):
        raise DataError(f"{path}: {_unreadable(texts, name, place)}; {_REMEDY}")
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or _is_moment(kind)):
        raise DataError(f"{path}: column {name!r} is {kind} (first value {short(array[0].as_py())}); {_REMEDY}")
    if not _is_moment(kind):
        # Floats of the nanoseconds of decimals would lose their order.
        whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0)
        wanted = pa.int64() if whole else pa.float64()
        try:
            array = array.cast(wanted)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: column {name!r} does not fit into {wanted} ({error})") from error
    times = array.to_numpy(zero_copy_only=False)
    bad = _unfit(times)
    if bad.any():
        at = int(bad.argmax())
        given = array[at].value if _is_moment(array.type) else times[at]
        raise DataError(f"{path}: {place(at)} has {name} {given}; give a finite time that 64 bits hold")
    return times


def _unfit(times: np.ndarray) -> np.ndarray:
    """bool [n]: what is not finite, or no 64-bit moment. The least number of 64 bits is none: it says that none is."""
    if times.dtype.kind == "M":
        return np.isnat(times)
    if times.dtype.kind == "f":
        return ~(np.abs(times) < _LIMIT)
    return times == -_LIMIT


def joined_times(path: Path, name: str, parts: Sequence[np.ndarray], place: Callable[[int], str]) -> np.ndarray:
    """The parts of a column, one after another. place: where a value stands, in words.

    Raises DataError if some are numbers and some are dates, or some look like one unit and all others like another.
    """
    dates = [part.dtype.kind == "M" for part in parts]
    if len(set(dates)) > 1:
        later = dates.index(not dates[0])
        there = place(sum(map(len, parts[:later])))
        raise DataError(
            f"{path}: column {name!r} has numbers as well as dates ({place(0)} has {parts[0][0]}, {there} has "
            f"{parts[later][0]}); write all of them in one way"
        )
    times = np.concatenate(parts)
    if not dates[0] and len(units := _units(times)) > 1:
        (one, first), (other, second), *_ = units.items()
        raise DataError(
            f"{path}: {place(first)} has {name} {times[first]}, which looks like {one}, and {place(second)} has "
            f"{times[second]}, which looks like {other}; write all of them in one unit"
        )
    return times


def _units(times: np.ndarray) -> dict[str, int]:
    """The units that numbers are in, each with a place of one; none if some later than 1980 look like no unit.

    In each unit, the moments of a century are other numbers than in any other: they look like it. Counters and years
    are small, and look like nothing.
    """
    if not times.size:
        return {}
    since, until = _CENTURY
    spans = {unit: (since * 1000**power, until * 1000**power) for power, unit in enumerate(UNITS.values())}
    least, most = times.min(), times.max()
    if most < 1000 * since or any(start <= least and most < end for start, end in spans.values()):
        return {}
    found, count = {}, 0
    for unit, (start, end) in spans.items():
        within = (times >= start) & (times < end)
        if number := np.count_nonzero(within):
            found[unit] = int(within.argmax())
            count += number
    return found if count == np.count_nonzero(times >= since) else {}


def as_moments(times: np.ndarray) -> np.ndarray:
    """datetime64: numbers are Unix time, in seconds, milliseconds, microseconds or nanoseconds as their size says."""
    if times.dtype.kind == "M":
        return times
    most = np.abs(times).max(initial=0)
    unit = next((unit for limit, unit in _UNITS if most < limit), "ns")
    return np.asarray(times).astype(np.int64).astype(f"M8[{unit}]")


def require_moment(text: str) -> None:
    """Raises ValueError for what is neither a date in ISO 8601 nor a number."""
    if not _NUMBER.fullmatch(text) and not _is_moment(_read_text(pa.array([text])).type):
        raise ValueError(
            f"cannot split at {text!r}: it is no moment; write a date such as 2024-05-01 or 2024-05-01T12:00, or a "
            "number as in the file"
        )


def moment_among(text: str, times: np.ndarray) -> np.generic:
    """The moment `text`, a number as the file writes them or a date in ISO 8601 (UTC), to compare `times` [N] with.

    Raises ValueError for anything else, and for a number where the times are dates.
    """
    if _NUMBER.fullmatch(text):
        if times.dtype.kind == "M":
            raise ValueError(
                f"cannot split at {text}: it is a number, and the timestamps are dates; write one such as 2024-05-01"
            )
        whole = text.lstrip("+-").isdigit() and abs(int(text)) < _LIMIT
        return np.int64(int(text)) if whole else np.float64(text)
    require_moment(text)
    moment = _read_text(pa.array([text])).to_numpy(zero_copy_only=False)[0]
    unit, given = (np.datetime_data(each)[0] for each in (as_moments(times).dtype, moment.dtype))
    nanoseconds = int(moment.astype(np.int64)) * _NANOSECONDS[given]
    if times.dtype.kind == "f":
        return np.float64(nanoseconds / _NANOSECONDS[unit])
    # Rounded up: whole units lie before the moment, or not before the next one. None lies beyond 64 bits.
    count = -(-nanoseconds // _NANOSECONDS[unit])
    count = max(min(count, _LIMIT - 1), 1 - _LIMIT)
    return np.datetime64(count, unit) if times.dtype.kind == "M" else np.int64(count)


def _read_text(texts: pa.Array) -> pa.Array:
    """Text as numbers or moments, whichever all of it is; text if it is neither."""
    for kind in (*_NUMBERS, *_MOMENTS):
        try:
            return texts.cast(kind)
        except pa.ArrowException:
            continue
    zoned = pc.match_substring_regex(texts, _ZONE)
    if pc.any(zoned).as_py() and not pc.all(zoned).as_py():
        for kind in _MOMENTS:
            try:
                return _in_utc(texts, zoned).cast(kind)
            except pa.ArrowException:
                continue
    return texts


def _in_utc(texts: pa.Array, zoned: pa.Array) -> pa.Array:
    """The texts, those that are not `zoned` with the zone that Arrow asks for where another has one."""
    midnight = pc.if_else(pc.match_substring_regex(texts, _DATE), "T00:00:00Z", "Z").cast(texts.type)
    return pc.if_else(zoned, texts, pc.binary_join_element_wise(texts, midnight, pa.scalar("", texts.type)))


def _unreadable(texts: pa.Array, name: str, place: Callable[[int], str]) -> str:
    """Which of `texts` cannot be read, or not as those before it are, in words."""
    moments = _in_utc(texts, pc.match_substring_regex(texts, _ZONE))
    read = [_readable(texts, kind) for kind in _NUMBERS]
    read += [_readable(each, kind) for each in (texts, moments) for kind in _MOMENTS]
    at = max(read)
    given = f"{place(at)} has {short(texts[at].as_py())} in {name!r}, which is"
    if is_text(_read_text(texts.slice(at, 1)).type):
        return f"{given} no time"
    return f"{given} not written as {short(texts[0].as_py())} of {place(0)} is"


def _readable(texts: pa.Array, kind: pa.DataType) -> int:
    """How many of the first `texts` can be read."""
    low, high = 0, len(texts)  # so many can be read; at most so many
    while low < high:
        middle = (low + high + 1) // 2
        try:
            texts.slice(low, middle - low).cast(kind)
            low = middle
        except pa.ArrowException:
            high = middle - 1
    return low


def _is_moment(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)
