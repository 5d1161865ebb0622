"""Arrow's columns as attributes of items. Needs no Delta Lake, so that builders may use it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.catalog import NO_TIME, Column
from genrec.catalog.kinds import (
    BOOLEAN,
    EARLIEST,
    LATEST,
    MAX_STRING_BYTES,
    NUMBER,
    STRING,
    STRINGS,
    TIMESTAMP,
)

# What a value of each kind is not, if it cannot be used.
IS_NO = {
    STRING: f"no string (of at most {MAX_STRING_BYTES} bytes, not ending in NUL)",
    NUMBER: "no number (a finite one)",
    BOOLEAN: "no boolean (true or false)",
    TIMESTAMP: "no timestamp (such as 2024-05-31T12:00:00Z, of the years 1 to 9999)",
    STRINGS: f"no strings (a list of them, of at most {MAX_STRING_BYTES} bytes each, not ending in NUL)",
}
_NUMBER = r"^\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*$"
_TIME = r"^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?$"
_ZONE = r"(?:Z|[+-]\d\d:?\d\d)$"
_TEXT, _UTC = pa.large_string(), pa.timestamp("us", "UTC")


def kind_of(arrow: pa.DataType) -> str | None:
    """The kind of attribute that values of a type are by themselves; None for types that are none."""
    types = pa.types
    if types.is_dictionary(arrow):
        return kind_of(arrow.value_type)
    if types.is_string(arrow) or types.is_large_string(arrow) or types.is_string_view(arrow):
        return STRING
    if types.is_integer(arrow) or types.is_floating(arrow) or types.is_decimal(arrow):
        return NUMBER
    if types.is_boolean(arrow):
        return BOOLEAN
    if types.is_timestamp(arrow) or types.is_date(arrow):
        return TIMESTAMP
    lists = types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow)
    return STRINGS if lists and kind_of(arrow.value_type) == STRING else None


def as_column(values: pa.Array | pa.ChunkedArray, kind: str, empty: bool = False) -> tuple[Column, np.ndarray]:
    """Values as an attribute of a kind, and which of them cannot be that: bool [n]; there the column has none.

    Text says numbers, true or false, times (ISO 8601, in UTC if without a zone), and lists as "a,b" or a JSON list.
    Whole numbers 0 and 1 are booleans, too. empty: whether empty text is text; it says nothing otherwise. Raises
    TypeError for a type that the kind cannot be made of.
    """
    array = whole(values)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = array.cast(_TEXT)
    if (own := kind_of(array.type)) is None:
        raise TypeError(f"{array.type} is no attribute")
    if own == STRING:
        array = array.cast(_TEXT)
        array = array if empty else pc.if_else(pc.equal(array, ""), pa.scalar(None, _TEXT), array)
    made = {
        STRING: _strings,
        NUMBER: _numbers,
        BOOLEAN: _booleans,
        TIMESTAMP: _timestamps,
        STRINGS: _lists,
    }[kind](array, own)
    if made is None:
        raise TypeError(f"{array.type} cannot be made {kind}")
    return made


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """All of a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def fixed_bytes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Text (large_string) without nulls as bytes S[w] [n], w the longest one's length."""
    texts = whole(column)
    if not len(texts):
        return np.empty(0, "S1")
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(offsets)
    padded = np.zeros((len(texts), max(1, int(lengths.max()))), np.uint8)
    data = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = data
    return padded.view(f"S{padded.shape[1]}").ravel()


def _strings(array: pa.Array, own: str) -> tuple[Column, np.ndarray] | None:
    if own == STRINGS:
        return None
    coded = array.cast(_TEXT).dictionary_encode()
    words = coded.dictionary
    usable = pc.and_(
        pc.less_equal(pc.binary_length(words), MAX_STRING_BYTES), pc.invert(pc.ends_with(words, "\0"))
    ).to_numpy(False)
    codes = coded.indices.fill_null(-1).to_numpy(False).astype(np.int64)
    if usable.all():
        return Column.of_words(STRING, codes, fixed_bytes(words)), np.zeros(len(array), bool)
    place = np.append(np.where(usable, np.cumsum(usable) - 1, -1), -1)
    bad = ~np.append(usable, True)[codes]
    return Column.of_words(STRING, place[codes], fixed_bytes(words.filter(pa.array(usable)))), bad


def _numbers(array: pa.Array, own: str) -> tuple[Column, np.ndarray] | None:
    if own not in (STRING, NUMBER):
        return None
    if own == STRING:
        form = pc.match_substring_regex(array, _NUMBER)
        wrong = _true(pc.invert(form))
        array = pc.utf8_trim_whitespace(pc.if_else(form, array, pa.scalar(None, _TEXT)))
    else:
        wrong = np.zeros(len(array), bool)
    found = array.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(False)
    infinite = np.isinf(found)
    return Column(NUMBER, np.where(infinite, np.nan, found)), wrong | infinite


def _booleans(array: pa.Array, own: str) -> tuple[Column, np.ndarray] | None:
    if own == BOOLEAN:
        return Column(BOOLEAN, array.cast(pa.int8()).fill_null(-1).to_numpy(False)), np.zeros(len(array), bool)
    if own == STRING:
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(array))
    elif own == NUMBER:
        texts = array.cast(pa.float64(), safe=False).cast(pa.int64(), safe=False).cast(_TEXT)
        texts = pc.if_else(pc.equal(array.cast(pa.float64(), safe=False), texts.cast(pa.float64())), texts, "no")
    else:
        return None
    place = pc.index_in(texts, value_set=pa.array(["false", "true", "0", "1"], _TEXT)).fill_null(-1).to_numpy(False)
    found = np.where(place < 0, -1, place % 2).astype(np.int8)
    return Column(BOOLEAN, found), (found < 0) & array.is_valid().to_numpy(False)


def _timestamps(array: pa.Array, own: str) -> tuple[Column, np.ndarray] | None:
    if own == TIMESTAMP:
        moments = array.cast(pa.timestamp("us") if getattr(array.type, "tz", None) is None else _UTC, safe=False)
    elif own == STRING:
        moments = _moments(array)
    else:
        return None
    found = moments.cast(pa.int64()).fill_null(NO_TIME).to_numpy(False)
    inside = (found >= EARLIEST) & (found <= LATEST)
    return Column(TIMESTAMP, np.where(inside, found, NO_TIME)), ~inside & array.is_valid().to_numpy(False)


def _moments(texts: pa.Array) -> pa.Array:
    """Times of texts; null for those that are none."""
    none, nothing, zone, midnight = (pa.scalar(one, _TEXT) for one in (None, "", "Z", "T00:00Z"))
    texts = pc.utf8_upper(pc.utf8_trim_whitespace(texts))
    texts = pc.if_else(pc.match_substring_regex(texts, _TIME), texts, none)
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    day, zoned = pc.equal(pc.utf8_length(texts), len("2024-05-31")), pc.match_substring_regex(texts, _ZONE)
    behind = pc.if_else(day, midnight, pc.if_else(zoned, nothing, zone))
    texts = pc.binary_join_element_wise(texts, behind, nothing)
    try:
        return texts.cast(_UTC)
    except pa.ArrowInvalid:  # one of them is no day, or no hour
        coded = texts.dictionary_encode()
        moments = []
        for text in coded.dictionary:
            try:
                moments.append(text.cast(_UTC))
            except pa.ArrowInvalid:
                moments.append(pa.scalar(None, _UTC))
        return pa.array([one.value for one in moments], pa.int64()).cast(_UTC).take(coded.indices)


def _lists(array: pa.Array, own: str) -> tuple[Column, np.ndarray] | None:
    if own == STRING:
        coded = array.dictionary_encode()
        read = [_list_of(text) for text in coded.dictionary.to_pylist()]
        bad = np.append([one is None for one in read], False).astype(bool)
        array = pa.array(read, pa.large_list(_TEXT)).take(coded.indices)
        broken = bad[coded.indices.fill_null(-1).to_numpy(False)]
    elif own == STRINGS:
        array, broken = array.cast(pa.large_list(_TEXT)), np.zeros(len(array), bool)
    else:
        return None
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(False).astype(np.int64)
    flat = array.flatten()
    made = _strings(flat, STRING)
    assert made is not None
    column, wrong = made
    owner = np.repeat(np.arange(len(array)), lengths)
    broken[owner[wrong | flat.is_null().to_numpy(False)]] = True
    lengths[broken] = 0
    offsets = np.concatenate([[0], lengths.cumsum()])
    return replace(column, kind=STRINGS, values=column.values[~broken[owner]], offsets=offsets), broken


def _list_of(text: str) -> list[str] | None:
    """A list that text says, None if it says none."""
    if not text.lstrip().startswith("["):
        return [word for part in text.split(",") if (word := part.strip())]
    try:
        found = json.loads(text)
        plain = isinstance(found, list) and all(isinstance(one, str) for one in found)
        return [one.encode().decode() for one in found] if plain else None
    except (ValueError, RecursionError):
        return None


def _true(answers: pa.Array) -> np.ndarray:
    return answers.fill_null(False).to_numpy(False)
