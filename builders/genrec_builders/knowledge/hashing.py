"""Choices that depend on a text alone, in every run."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b


@cache
def text_number(text: str) -> int:
    """A number of 32 bits that depends on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
