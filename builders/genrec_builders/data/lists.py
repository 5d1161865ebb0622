"""Lists that a file writes as text: `12 7 3`, `12,7,3`, `[12, 7, 3]`, `["a", "b"]`, `['a', 'b']`."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pyarrow as pa

from genrec.errors import DataError
from genrec_builders.data.checks import short


def text_lists(path: Path, texts: pa.Array, name: str) -> pa.Array:
    """list array [n] of large_string. Raises DataError for text that is no list of texts and numbers."""
    lists = []
    for at, text in enumerate(texts.to_pylist()):
        values = _parse(text.strip())
        if values is not None and "..." in values and not re.search("['\"]", text):
            raise DataError(
                f"{path}: data row {at + 1} has {short(text)} in {name!r}, a list that numpy or pandas shortened when "
                "it was printed: what stood at '...' is lost; write the list again, with all of its values"
            )
        if values is None:
            raise DataError(
                f"{path}: data row {at + 1} has {short(text)} in {name!r}; write a list such as '12 7 3', "
                "'[12, 7, 3]' or '[\"a\", \"b\"]'"
            )
        lists.append(values)
    return pa.array(lists, pa.list_(pa.large_string()))


def _parse(text: str) -> list[str] | None:
    if not text.startswith("["):
        # `a,b c` are two: commas separate where white space does not, or stands beside one.
        spaced = re.search(r"\s", text) and not re.search(r",\s|\s,", text)
        return text.split() if spaced else _parts(text)
    if not text.endswith("]"):
        return None
    if "'" not in text and '"' not in text:
        return _parts(text[1:-1])
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = _python_list(text)
    plain = isinstance(values, list) and all(type(value) in (str, int, float) for value in values)
    return [str(value) for value in values] if plain else None


def _python_list(text: str) -> object:
    """A list as Python writes it; None for what is no such list, and for numpy's way: `['a' 'b']` means 'ab' here."""
    try:
        values = ast.literal_eval(text)
        literals = sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(text).readline))
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    return values if isinstance(values, list) and literals == sum(type(value) is str for value in values) else None


def _parts(text: str) -> list[str]:
    return [value for value in re.split(r"[\s,]+", text) if value]
