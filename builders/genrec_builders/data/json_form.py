"""`inter.json` and `index.json`, the form that the literature publishes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.errors import DataError
from genrec_builders.data.checks import check_id_sizes, checked_codes, common_length, look_up, rounded_levels, short
from genrec_builders.data.tables import Dataset, Interactions, ItemTable

_TOKEN = r"^<(?P<level>[a-z]+)_(?P<code>-?[0-9]{1,18})>$"


def read_json_form(path: Path) -> Dataset:
    """As `read_dataset`, of a directory in this form."""
    inter_path, index_path = path / "inter.json", path / "index.json"
    inter, index = _load_object(inter_path), _load_object(index_path)

    item_ids = _text_array(index_path, index, "item")
    tokens = _list_array(index_path, index, "item", False, "a list of codes such as ['<a_12>', '<b_7>']")
    sids = _parse_tokens(index_path, list(index), tokens)
    items = ItemTable(item_ids=list(index), sids=sids, levels=rounded_levels(sids))

    users = _text_array(inter_path, inter, "user").to_pylist()
    lists = _list_array(inter_path, inter, "user", True, "a list of item ids")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    values = lists.flatten()
    rows = look_up(values.cast(pa.large_string()), item_ids)
    if not len(rows):
        raise DataError(f"{inter_path}: no interactions; every user's list is empty")
    unknown = np.flatnonzero(rows < 0)
    if unknown.size:
        user = users[int(np.searchsorted(offsets, unknown[0], side="right")) - 1]
        raise DataError(
            f"{inter_path}: user {user!r} has item {values[int(unknown[0])].as_py()!r}, which index.json does not list "
            f"({unknown.size} such interactions); add the item there or drop the interaction"
        )
    keep = np.diff(offsets) > 0
    offsets = np.concatenate([offsets[:1], offsets[1:][keep]])
    user_ids = [user for user, kept in zip(users, keep.tolist(), strict=True) if kept]
    return Dataset(items, Interactions(user_ids=user_ids, offsets=offsets, rows=rows.astype(np.int32)))


def _load_object(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise DataError(f"{path}: key {twice!r} occurs more than once; merge or drop one of its entries")
        return found

    if not path.is_file():
        raise DataError(f"{path}: missing; this form of data needs both inter.json and index.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path}: not valid JSON ({error}); write the file again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}; expected an object")
    if not value:
        raise DataError(f"{path}: empty; there is nothing to learn from or to serve")
    return value


def _text_array(path: Path, keys: Iterable[str], what: str) -> pa.Array:
    try:
        ids = pa.array(list(keys), type=pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: {what} id {error.object!r} is not valid Unicode; rename it") from error
    check_id_sizes(path, ids, what)
    return ids


def _list_array(path: Path, values: dict[str, Any], what: str, numbers: bool, expected: str) -> pa.Array:
    """The values of a JSON object as one Arrow array: lists of text or, where `numbers` allows it, of int64."""

    def convert(lists: list[Any]) -> pa.Array | None:
        try:
            # Inferred, not asked for: asked for whole numbers, Arrow would cut 1.5 to 1.
            array = pa.array(lists)
            kind = array.type.value_type if pa.types.is_list(array.type) else pa.null()
            if pa.types.is_null(kind) and pa.types.is_list(array.type) and not len(array.flatten()):
                array, kind = array.cast(pa.list_(pa.string())), pa.string()
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return None
        right = pa.types.is_string(kind) or (numbers and pa.types.is_int64(kind))
        return array if right and not array.null_count and not array.flatten().null_count else None

    array = convert(list(values.values()))
    if array is not None:
        return array
    for key, value in values.items():
        if convert([value]) is None:
            raise DataError(f"{path}: {what} {key!r} has {short(value)}; expected {expected}")
    raise DataError(f"{path}: some ids are numbers and some are text; write all of them in one way")


def _parse_tokens(path: Path, item_ids: list[str], tokens: pa.Array) -> np.ndarray:
    """int32 [n, L] from a list array of `<level_code>` tokens; level l must carry the l-th letter."""
    levels = common_length(path, pc.list_value_length(tokens).to_numpy(), item_ids, "codes")
    flat = tokens.flatten()
    parsed = pc.extract_regex(flat, _TOKEN)
    if parsed.null_count:
        at = int(np.flatnonzero(parsed.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{path}: item {item_ids[at // levels]!r} has the code {flat[at].as_py()!r}; expected the form <a_128>"
        )
    letters = pc.struct_field(parsed, "level").to_numpy(zero_copy_only=False).reshape(-1, levels)
    for level in range(levels):
        wrong = np.flatnonzero(letters[:, level] != letters[0, level])
        if wrong.size or letters[0, level] in letters[0, :level]:
            at = int(wrong[0]) if wrong.size else 0
            raise DataError(
                f"{path}: item {item_ids[at]!r} has the level letter {letters[at, level]!r} in place {level}; every "
                f"item must give its levels once each and in one order ({item_ids[0]!r} gives {letters[0].tolist()})"
            )
    codes = pc.struct_field(parsed, "code").cast(pa.int64()).to_numpy().reshape(-1, levels)
    return checked_codes(path, codes, item_ids)
