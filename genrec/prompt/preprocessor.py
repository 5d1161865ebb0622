"""From what a client sends to a prompt, the rows that must not come back, and the numbers that later steps need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.catalog import CatalogView
from genrec.errors import InvalidRequest
from genrec.prompt.layout import PromptLayout
from genrec.prompt.limits import Limits
from genrec.prompt.query import QueryTokenizer
from genrec.rules import RuleBook

_NO_QUERY = np.empty(0, np.int32)


@dataclass(frozen=True)
class Request:
    """One user's request, as read from the wire.

    history: object [N] of bytes, item ids, oldest first. exclude: object [M] of bytes. top_k: None for the default.
    query: UTF-8 text; white space is no query. rules: as JSON, empty for none.
    """

    history: np.ndarray
    exclude: np.ndarray
    top_k: int | None = None
    allow_history: bool = False
    query: bytes = b""
    rules: bytes = b""


@dataclass(frozen=True)
class Prepared:
    """What the backbone and the verifier need of one request.

    prompt: int32 [P], empty if there is neither a known item nor a query. voters: int32 [h], the rows of its history,
    oldest first; none with a query, which says what is wanted better than what was bought before. blocked: int32 [b],
    rows that must not be returned. unknown: history items that are not in the catalogue. rules: in their canonical
    form, empty for none.
    """

    prompt: np.ndarray
    voters: np.ndarray
    blocked: np.ndarray
    top_k: int
    unknown: int
    rules: bytes


class Preprocessor:
    """Validates requests and builds their prompts.

    tokenizer: of a bundle that was trained with text queries. book: reads rules; one without a deployment's if None.
    """

    def __init__(
        self,
        catalog: CatalogView,
        layout: PromptLayout,
        limits: Limits,
        tokenizer: QueryTokenizer | None = None,
        book: RuleBook | None = None,
    ) -> None:
        self._catalog, self._layout, self._limits, self._tokenizer = catalog, layout, limits, tokenizer
        self._book = book or RuleBook(catalog.kinds)

    def validate(self, request: Request) -> None:
        """Raise InvalidRequest for a request outside the limits."""
        limits = self._limits
        if request.top_k is not None and not 1 <= request.top_k <= limits.top_k:
            raise InvalidRequest(f"top_k is {request.top_k}; it must be 1 to {limits.top_k}")
        for name, items, limit in (
            ("history", request.history, limits.history),
            ("exclude", request.exclude, limits.exclude),
        ):
            if items.size > limit:
                raise InvalidRequest(f"{name} has {items.size} items; at most {limit} are accepted, send fewer")
        if request.query:
            self._validate_query(request.query)
        if request.rules:
            self._book.read(request.rules)

    def _validate_query(self, query: bytes) -> None:
        if len(query) > self._limits.query_bytes:
            raise InvalidRequest(
                f"query has {len(query)} bytes; at most {self._limits.query_bytes} are accepted, shorten it"
            )
        if self._tokenizer is None:
            raise InvalidRequest(
                f"query {query[:40].decode(errors='replace')!r} was given, but this bundle was not trained "
                "with text queries; leave the query out"
            )
        try:
            query.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"query is not valid UTF-8: {error.reason} at byte {error.start}, {query[error.start : error.end]!r}; "
                "encode the text as UTF-8"
            ) from None

    def prepare(self, requests: Sequence[Request]) -> list[Prepared]:
        """Prompts and rules of valid `requests`; ids and queries of the whole batch are looked up at once."""
        ids = [part for request in requests for part in (request.history, request.exclude)]
        rows = self._catalog.rows_of(np.concatenate(ids))
        parts = np.split(rows, np.cumsum([part.size for part in ids[:-1]]))
        if self._tokenizer is None:
            queries = [_NO_QUERY] * len(requests)
        else:
            queries = self._tokenizer.encode_batch([request.query for request in requests])
        return [
            self._prepared(request, history, exclude, query)
            for request, history, exclude, query in zip(requests, parts[::2], parts[1::2], queries, strict=True)
        ]

    def _prepared(self, request: Request, history: np.ndarray, exclude: np.ndarray, query: np.ndarray) -> Prepared:
        known = history[history >= 0]
        blocked = exclude[exclude >= 0]
        if not request.allow_history:
            blocked = np.concatenate([blocked, known])
        recent = self._layout.recent(known)
        asked = known.size or query.size
        return Prepared(
            prompt=self._layout.encode(self._catalog.sids_of(recent), query) if asked else np.empty(0, np.int32),
            voters=recent[:0] if request.query else recent,
            blocked=blocked,
            top_k=self._limits.default_top_k if request.top_k is None else request.top_k,
            unknown=history.size - known.size,
            rules=self._book.read(request.rules) if request.rules else b"",
        )
