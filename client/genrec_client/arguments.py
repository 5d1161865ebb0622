"""Judges what callers give. A value of another type is refused, not guessed at: "false" is not False, nor "5" 5."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any, SupportsIndex, TypeAlias

import numpy as np

ItemId: TypeAlias = str | bytes | SupportsIndex
"""An item id: text, its UTF-8 bytes, or an integer (also numpy's), which travels as decimal digits."""

# gRPC and Triton count microseconds in 64 bits; this stays far below, and above any time that somebody waits.
LONGEST_S = 1_000_000
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,2048}")  # RFC 6750
_KEY, _TEXT = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[ -~]*")  # of gRPC metadata


def is_flag(value: Any) -> bool:
    """Whether the value is True or False, also numpy's."""
    return isinstance(value, (bool, np.bool_))


def whole_number(value: Any) -> int | None:
    """The value as an int if it is one, also numpy's; None for anything else, such as True, 5.0 and "5"."""
    if is_flag(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def seconds_problem(name: str, value: Any) -> str | None:
    """What is wrong with a time limit in seconds; None if nothing is."""
    if not _is_number(value):
        return f"{name}: {value!r} is a {type(value).__name__}; give a number of seconds"
    if not 0 < value < LONGEST_S:
        return f"{name}: {value} is no time limit; give seconds above 0 and below {LONGEST_S} (11 days)"
    return None


def require_seconds(name: str, value: Any) -> None:
    """Raises ValueError for a time limit that cannot be used."""
    if (problem := seconds_problem(name, value)) is not None:
        raise ValueError(problem)


def require_count(name: str, value: Any) -> None:
    """Raises ValueError for what is no whole number of at least 1."""
    if (count := whole_number(value)) is None:
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; give a whole number")
    if count < 1:
        raise ValueError(f"{name} is {count}; it must be at least 1")


def require_not_negative(name: str, value: Any) -> None:
    """Raises ValueError for what is no number, and for one below 0; infinity is a number."""
    if not _is_number(value):
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; give a number")
    if not value >= 0:
        raise ValueError(f"{name} is {value}; it must not be negative")


def require_flag(name: str, value: Any) -> None:
    """Raises ValueError for what is neither True nor False."""
    if not is_flag(value):
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; give True or False")


def require_name(name: str, value: Any) -> None:
    """Raises ValueError for what is no text, and for an empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}; give a name")


def require_metadata(metadata: Iterable[Any], token: str | None = None) -> tuple[tuple[str, str], ...]:
    """The pairs of key and value as gRPC sends them; token: sent with them as `authorization: Bearer`.

    Raises ValueError for what it cannot send. It never shows a value: that may be a secret.
    """
    pairs = tuple(metadata)
    if token is not None:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError("the token cannot be sent; give text of 1 to 2048 letters, digits and - . _ ~ + / =")
        pairs += (("authorization", f"Bearer {token}"),)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"metadata holds a {type(pair).__name__}; give pairs of key and value")
        key, value = pair
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r} cannot be sent; use a-z, 0-9, - . and _")
        if not isinstance(value, bytes if key.endswith("-bin") else str):
            kind = "bytes" if key.endswith("-bin") else "text"
            raise ValueError(f"metadata {key!r}: its value is a {type(value).__name__}; give {kind}")
        if isinstance(value, str) and not _TEXT.fullmatch(value):
            raise ValueError(f"metadata {key!r}: its value is not printable ASCII; name the key {key}-bin, give bytes")
    return pairs


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not is_flag(value)
