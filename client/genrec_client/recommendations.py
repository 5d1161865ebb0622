"""The answer for one user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Source(IntEnum):
    """Where an item comes from."""

    DRAFTED = 0
    """Drafted by the model."""
    FALLBACK = 1
    """Filled in by popularity, because too few drafts were valid."""
    VOTED = 2
    """Not drafted, but bought by those who bought the history's items; only from bundles with votes."""


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One item of the answer.

    item_id: the catalogue's id. score: log-probability of the item's semantic ID, with what votes add and without what
    boosts added; -1e9 for a fallback; always finite.
    source: drafted, fallback or voted.
    """

    item_id: str
    score: float
    source: Source


@dataclass(frozen=True, slots=True)
class Recommendations:
    """The ranked items for one user, and how they came about.

    items: best first, distinct. drafted: beams with a finite score. valid: drafted beams that stand for an item that
    may be shown. unknown_history: ids of the history that the catalogue does not know. filled: items taken from the
    popularity fallback. bundle_version: the bundle that answered. catalog_version: the catalogue that the items are
    from. latency_ms: milliseconds from the call to the answer as this client saw it, all attempts and waits included.
    attempts: requests sent for this answer. explanation: what rules did, if they asked for that; None otherwise, and
    from a server without rules. request_id: that the server's log names the request by.
    """

    items: tuple[RecommendedItem, ...]
    drafted: int
    valid: int
    unknown_history: int
    filled: int
    bundle_version: str
    catalog_version: str
    latency_ms: float
    attempts: int
    explanation: Mapping[str, Any] | None = None
    request_id: str = ""

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The ids alone, best first."""
        return tuple(item.item_id for item in self.items)
