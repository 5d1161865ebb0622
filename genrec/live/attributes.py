"""Attributes as JSON objects, one text for an item, which is how the store of a live catalogue keeps them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from genrec.catalog import NO_TIME, Columns
from genrec.catalog.kinds import BOOLEAN, NUMBER, STRING, STRINGS, TIMESTAMP, Kinds
from genrec.live.arrow_columns import IS_NO, as_column, whole

_TEXT = pa.large_string()
_TYPES = {
    STRING: _TEXT,
    NUMBER: pa.float64(),
    BOOLEAN: pa.bool_(),
    TIMESTAMP: _TEXT,
    STRINGS: pa.list_(_TEXT),
}
_QUOTED = r'"(?:[^"\\\x00-\x1f]|\\.)*"'
_BARE = r'[^"{}\[\]\x00-\x1fNI]'  # not the N and I of NaN and Infinity, which Arrow takes and JSON does not have
# One object in one line without objects in it, whatever else is wrong with it. Such lines can be read together: none of
# them goes on in the next one, or holds two. Others are read one by one.
_LINE = rf"^\{{(?:{_BARE}|{_QUOTED}|\[(?:{_BARE}|{_QUOTED})*\])*\}}$"
_DEEPEST = 100  # lists and objects in each other
_BLOCK = 1 << 30
NO_OBJECT = 'are no JSON object; write them as {"name": value}'


@dataclass(frozen=True)
class Described:
    """What n texts say. columns: of the kinds asked for. given: bool [n], which texts are there.

    wrong: what is wrong with those that cannot be used, by place; what the columns say of them means nothing.
    """

    columns: Columns
    given: np.ndarray
    wrong: dict[int, str]


def parse(texts: pa.ChunkedArray | pa.Array, kinds: Kinds) -> Described:
    """What texts, large_string [n], say of the attributes in `kinds`; other names may be there and are passed over."""
    texts = whole(texts)
    count = len(texts)
    given = texts.is_valid().to_numpy(False)
    wrong: dict[int, str] = {}
    plain = pc.match_substring_regex(texts, _LINE).fill_null(False).to_numpy(False)
    together = _read_together(texts.filter(pa.array(plain)), kinds)
    if together is None:
        plain, together = np.zeros(count, bool), _schema(kinds).empty_table()
    alone = np.flatnonzero(given & ~plain)
    rows = []
    for at, text in zip(alone.tolist(), texts.take(pa.array(alone)).to_pylist(), strict=True):
        said, problem = _read_alone(text, kinds)
        rows.append(said)
        if problem:
            wrong[at] = problem
    if plain.all():
        table = together
    else:
        # Behind them stands a row that says nothing, for the items that have no text.
        table = pa.concat_tables([together, pa.Table.from_pylist([*rows, {}], _schema(kinds))])
        place = np.full(count, table.num_rows - 1)
        place[plain] = np.arange(together.num_rows)
        place[alone] = together.num_rows + np.arange(alone.size)
        table = table.take(pa.array(place))
    columns = {}
    for name, kind in kinds.items():
        values = table[name]
        columns[name], bad = as_column(values, kind, empty=True)
        for at in np.flatnonzero(bad).tolist():
            wrong.setdefault(at, is_no(name, values[at].as_py(), kind))
    return Described(Columns(columns, count), given, wrong)


def is_no(name: str, value: Any, kind: str) -> str:
    """What is wrong with an attribute that is not of its kind."""
    shown = json.dumps(value, default=str)
    return f"attribute {name!r} is {shown[:80]}, which is {IS_NO[kind]}"


def names_in(texts: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """The names that texts, JSON objects or null, say anything of, and the first place of each."""
    found: dict[str, int] = {}
    for at, text in enumerate(texts.to_pylist()):
        for name in json.loads(text) if text else ():
            found.setdefault(name, at)
    return found


def texts_of(columns: Columns) -> pa.Array:
    """JSON objects of what each item has of at least one attribute: large_string [n]."""
    pieces = [_pieces(name, columns) for name in columns]
    # Arrow 25 leaves out rows in which everything is skipped, so nothing at all is said by an empty text.
    none = reduce(pc.and_, [piece.is_null() for piece in pieces])
    pieces[0] = pc.if_else(none, _text(""), pieces[0])
    inner = pc.binary_join_element_wise(*pieces, _text(","), null_handling="skip")
    return pc.binary_join_element_wise(_text("{"), inner, _text("}"), _text(""))


def _pieces(name: str, columns: Columns) -> pa.Array:
    """`"name":value` of each item, null where it has none."""
    column = columns[name]
    values = column.values
    if column.kind == NUMBER:
        texts = pa.array(values, mask=np.isnan(values)).cast(_TEXT)
    elif column.kind == BOOLEAN:
        texts = pa.array(["false", "true"], _TEXT).take(pa.array(values, mask=values < 0))
    elif column.kind == TIMESTAMP:
        times = pa.array(values, mask=values == NO_TIME).cast(pa.timestamp("us", "UTC"))
        texts = pc.replace_substring(times.cast(_TEXT), " ", "T")
        texts = pc.binary_join_element_wise(_text('"'), texts, _text('"'), _text(""))
    else:
        words = pa.array([json.dumps(word.decode()) for word in column.words.tolist()], _TEXT)
        texts = words.take(pa.array(values.astype(np.int64) - 1, mask=values == 0))
        if column.offsets is not None:
            offsets = pa.array(column.offsets.astype(np.int32))
            joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), _text(","))
            empty = pa.array(np.diff(column.offsets) == 0)
            joined = pc.if_else(empty, pa.scalar(None, _TEXT), joined)
            texts = pc.binary_join_element_wise(_text("["), joined, _text("]"), _text(""))
    return pc.binary_join_element_wise(_text(f"{json.dumps(name)}:"), texts, _text(""))


def _schema(kinds: Kinds) -> pa.Schema:
    return pa.schema([(name, _TYPES[kind]) for name, kind in kinds.items()])


def _read_together(lines: pa.Array, kinds: Kinds) -> pa.Table | None:
    """What lines say, a row each; None if anything is wrong with any of them."""
    if not len(lines) or not kinds:
        return _schema(kinds).empty_table() if kinds else None
    ended = pc.binary_join_element_wise(lines, _text(""), _text("\n"))
    offsets = np.frombuffer(ended.buffers()[1], np.int64)
    data = ended.buffers()[2][: offsets[len(ended)]]
    block = min(len(data) + 1, max(16 << 20, 2 * int(np.diff(offsets).max())), _BLOCK)
    try:
        table = pa_json.read_json(
            pa.BufferReader(data),
            pa_json.ReadOptions(block_size=block),
            pa_json.ParseOptions(explicit_schema=_schema(kinds), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    return table if table.num_rows == len(lines) else None


def _read_alone(text: str, kinds: Kinds) -> tuple[dict[str, Any], str]:
    """What one text says, and what is wrong with it."""
    try:
        if _depth(text) > _DEEPEST:
            return {}, f"attributes {text[:80]!r} have more than {_DEEPEST} lists or objects in each other"
        found = json.loads(text, parse_int=float, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {}, f"attributes {text[:80]!r} {NO_OBJECT}"
    said = {name: found[name] for name in kinds if found.get(name) is not None}
    for name, value in said.items():
        if not _is_of(value, kinds[name]):
            return {}, is_no(name, value, kinds[name])
    return said, ""


def _is_of(value: Any, kind: str) -> bool:
    """Whether a value of JSON has the type of a kind."""
    if kind == NUMBER:
        return isinstance(value, float)
    if kind == BOOLEAN:
        return isinstance(value, bool)
    values = value if kind == STRINGS and isinstance(value, list) else [value]
    if kind == STRINGS and values is not value:
        return False
    try:
        return all(isinstance(one, str) and one.encode() is not None for one in values)
    except UnicodeEncodeError:
        return False


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    bare = re.sub(_QUOTED, "", text)
    steps = np.frombuffer(bare.encode(errors="replace"), np.uint8)
    steps = np.isin(steps, list(b"[{")).astype(int) - np.isin(steps, list(b"]}"))
    return int(steps.cumsum().max(initial=0))


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, _TEXT)
