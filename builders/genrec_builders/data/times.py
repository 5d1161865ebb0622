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
# Numbers below so much are of that unit, since 1970: seconds until the year 5138, milliseconds until then on.
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_UNITS = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))


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
        wanted = pa.int64() if pa.types.is_integer(kind) else pa.float64()
        try:
            array = array.cast(wanted)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: column {name!r} does not fit into {wanted} ({error})") from error
    times = array.to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~np.isfinite(times)) if times.dtype.kind == "f" else times[:0]
    if bad.size:
        raise DataError(f"{path}: {place(int(bad[0]))} has {name} {times[bad[0]]}; give a finite number")
    return times


def joined_times(path: Path, name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The parts of a column, one after another. Raises DataError if some are numbers and some are dates."""
    dates = [part.dtype.kind == "M" for part in parts]
    if len(set(dates)) > 1:
        other = dates.index(not dates[0])
        row = sum(map(len, parts[:other])) + 1
        raise DataError(
            f"{path}: column {name!r} has numbers as well as dates (data row 1 has {parts[0][0]}, data row {row} has "
            f"{parts[other][0]}); write all of them in one way"
        )
    return np.concatenate(parts)


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
        return np.int64(text) if text.lstrip("+-").isdigit() and len(text) < 19 else np.float64(text)
    require_moment(text)
    moment = _read_text(pa.array([text])).to_numpy(zero_copy_only=False)[0]
    if times.dtype.kind == "M":
        return moment
    unit = np.datetime_data(as_moments(times).dtype)[0]
    if times.dtype.kind == "f":
        return np.float64((moment - np.datetime64(0, "s")) / np.timedelta64(1, unit))
    whole = moment.astype(f"M8[{unit}]")  # rounded down; whole units lie before it or not before the next one
    return np.int64(whole.astype(np.int64) + int(whole < moment))


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
