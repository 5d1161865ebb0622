"""The kinds of attributes that items may have, and their limits.

| kind | Python value |
| --- | --- |
| string | str |
| number | float |
| boolean | bool |
| timestamp | datetime, in UTC if it has no zone |
| strings | list of str |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

STRING, NUMBER, BOOLEAN, TIMESTAMP, STRINGS = KINDS = ("string", "number", "boolean", "timestamp", "strings")
Kinds = Mapping[str, str]  # the kind of each attribute by its name

# What attributes may be, wherever they come from.
MAX_ATTRIBUTES = 64
MAX_NAME_CHARACTERS = 64
MAX_STRING_BYTES = 256  # nor may a string end in NUL
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # timestamps: the years 1 to 9999
# In the metadata of an items file: the columns that are texts for people and models, as JSON. Rules have the rest, too.
TEXTS_KEY = b"genrec.texts"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NO_TIME = int(np.iinfo(np.int64).min)
# What stands for no value in a column, of each kind but lists, which are empty then.
NO_VALUE: dict[str, Any] = {STRING: 0, NUMBER: np.nan, BOOLEAN: -1, TIMESTAMP: NO_TIME}


def is_absent(kind: str, stored: np.ndarray) -> np.ndarray:
    """Which of what a column of `kind`, no list, holds stand for no value: bool [m]."""
    return np.isnan(stored) if kind == NUMBER else stored == NO_VALUE[kind]


def check_kinds(kinds: Kinds) -> None:
    """Raises ValueError, in words, for more attributes, other names or other kinds than there may be."""
    if len(kinds) > MAX_ATTRIBUTES:
        raise ValueError(f"{len(kinds)} attributes are more than {MAX_ATTRIBUTES}; leave some out")
    for name, kind in kinds.items():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"attribute {name!r} is not valid Unicode; rename it") from None
        if not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise ValueError(f"attribute {name[:80]!r} must have 1 to {MAX_NAME_CHARACTERS} characters; rename it")
        if kind not in KINDS:
            raise ValueError(f"attribute {name!r} has kind {kind!r}; the kinds are {', '.join(KINDS)}")


def texts_among(names: Sequence[str], metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """Those of an items file's columns that are texts, all if its metadata do not say. Raises ValueError."""
    stated = (metadata or {}).get(TEXTS_KEY)
    try:
        texts = names if stated is None else json.loads(stated)
        return [name for name in names if name in texts]
    except (ValueError, TypeError) as error:
        raise ValueError(f"metadata {TEXTS_KEY.decode()} says {stated!r}; write the file again") from error


def is_text(kind: str) -> bool:
    """Whether columns of a kind hold words."""
    return kind in (STRING, STRINGS)


def bytes_of(at: int, value: Any) -> bytes:
    """A string as bytes. at: its place, for the ValueError that all of these raise for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"value {at}, {str(value)[:80]!r}, is no string")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"value {at}, {value[:80]!r}, is not valid Unicode") from None
    if len(encoded) > MAX_STRING_BYTES:
        raise ValueError(
            f"value {at}, {value[:80]!r}, has {len(encoded)} bytes; a string has at most {MAX_STRING_BYTES}"
        )
    if encoded.endswith(b"\0"):
        raise ValueError(f"value {at}, {value[:80]!r}, ends in NUL")
    return encoded


def number_of(at: int, value: Any) -> float:
    """A number as float64."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"value {at}, {str(value)[:80]!r}, is no number")
    try:
        found = float(value)
    except OverflowError:
        found = np.inf
    if abs(found) == np.inf:
        raise ValueError(f"value {at}, {str(value)[:80]}, is not finite")
    return found


def boolean_of(at: int, value: Any) -> bool:
    """A boolean as it is."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"value {at}, {str(value)[:80]!r}, is not true or false")
    return bool(value)


def microseconds_of(at: int, value: Any) -> int:
    """A timestamp as microseconds since 1970 UTC."""
    if not isinstance(value, datetime):
        raise ValueError(f"value {at}, {str(value)[:80]!r}, is no datetime")
    since = value.replace(tzinfo=value.tzinfo or timezone.utc) - EPOCH
    return since // timedelta(microseconds=1)
