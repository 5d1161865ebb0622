"""What a caller asks for, for one user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

ItemId: TypeAlias = str | bytes | SupportsIndex
"""An item id: text, its UTF-8 bytes, or an integer (also numpy's), which travels as decimal digits."""


@dataclass(frozen=True)
class RecommendRequest:
    """One user's request. A field that is None is not sent, and the bundle's default holds.

    history: item ids, oldest first; may be empty; ids that the catalogue does not know are skipped and counted. top_k:
    items wanted, 1 up to the bundle's limit. exclude: item ids never to return. allow_history: whether items of the
    history may come back. query: text query, for bundles that were trained with one.
    """

    history: Iterable[ItemId]
    top_k: int | None = None
    exclude: Iterable[ItemId] | None = None
    allow_history: bool | None = None
    query: str | None = None
