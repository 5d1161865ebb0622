"""What a caller asks for, for one user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from genrec_client.arguments import ItemId
from genrec_client.rules import Rules


@dataclass(frozen=True)
class RecommendRequest:
    """One user's request. A field that is None is not sent, and the bundle's default holds.

    history: item ids, oldest first; may be empty; ids that the catalogue does not know are skipped and counted. top_k:
    items wanted, 1 up to the bundle's limit. exclude: item ids never to return. allow_history: whether items of the
    history may come back. query: text query, for bundles that were trained with one. rules: of the shop, for this
    request; also as a mapping or JSON text in the server's own form, for what you already have. sheddable: whether a
    server with too many requests may refuse this one before others. request_id: that logs and traces of the server name
    it by; made up if None.
    """

    history: Iterable[ItemId]
    top_k: int | None = None
    exclude: Iterable[ItemId] | None = None
    allow_history: bool | None = None
    query: str | None = None
    rules: Rules | Mapping[str, Any] | str | None = None
    sheddable: bool | None = None
    request_id: str | None = None
