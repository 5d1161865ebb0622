"""The product in process: prompt -> drafts -> items, without a server.

    answers = Pipeline.open("build/shop-bundle").recommend([["cam-0323", "cam-0329"]])

The ensemble's three steps run the same parts, each in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrec.bundle import Bundle
from genrec.catalog import Catalog, ItemIndex
from genrec.engines import open_engine
from genrec.engines.base import Engine
from genrec.prompt import Limits, Preprocessor, PromptLayout, QueryTokenizer, Request
from genrec.rules import Applied, RuleBook
from genrec.rules.explanation import explanation
from genrec.rules.narrowing import Narrowed, Narrowing, masks_of
from genrec.verifier import Verified, Verifier
from genrec.votes import Voting


@dataclass(frozen=True)
class Recommendation:
    """One user's answer; the fields are the wire contract's outputs.

    item_ids: k distinct ids, best first. scores: float32 [k], log-probabilities of the items' semantic IDs, with what
    votes add. source: uint8 [k], DRAFTED, FALLBACK or VOTED. drafted, valid: drafts with a finite score, and those that
    are live items. unknown: items of the history that are not in the catalogue. filled: items from the popularity
    fallback. explanation: of what rules did, if they ask for one.
    """

    item_ids: list[str]
    scores: np.ndarray
    source: np.ndarray
    drafted: int
    valid: int
    unknown: int
    filled: int
    explanation: dict[str, Any] | None = None


class Pipeline:
    """Preprocessor, engine and verifier over one catalogue.

    engine: its draft width is the beam width. tokenizer: of a model that was trained with text queries. limits: of a
    request, the defaults of `Limits` if None. rules: that hold for every request, as JSON. voting: what is added to
    the drafts' scores.
    """

    def __init__(
        self,
        catalog: Catalog,
        index: ItemIndex,
        layout: PromptLayout,
        engine: Engine,
        tokenizer: QueryTokenizer | None = None,
        limits: Limits | None = None,
        rules: str = "",
        voting: Voting | None = None,
    ) -> None:
        """Raises InvalidRequest for rules that are wrong, or do not fit the catalogue."""
        self.catalog, self.layout, self.engine, self.tokenizer = catalog, layout, engine, tokenizer
        self.book = RuleBook(catalog.kinds, rules)
        self.preprocessor = Preprocessor(catalog, layout, limits or Limits(), tokenizer, self.book)
        self.narrowing = Narrowing(layout.space, engine.rule_masks if engine.takes_rules else None)
        self.verifier = Verifier(catalog, index, voting)

    @classmethod
    def open(
        cls, bundle: Bundle | Path | str, engine: str | Engine = "onnx", rules: str = "", **options: Any
    ) -> Pipeline:
        """The pipeline of a bundle.

        engine: a name of `genrec.engines.ENGINES`, whose class takes the options, or an engine over the bundle's files.
        rules: that hold for every request, as JSON.
        Raises BundleError for a bundle that cannot be read.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle(bundle)
        opened = open_engine(bundle, engine, **options) if isinstance(engine, str) else engine
        limits = bundle.manifest.limits
        tokenizer, voting = bundle.query_tokenizer, bundle.voting()
        return cls(bundle.catalog, bundle.index, bundle.layout, opened, tokenizer, limits, rules, voting)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top_k: int | None = None,
        *,
        exclude: Sequence[str] = (),
        allow_history: bool = False,
        queries: Sequence[str] | None = None,
        rules: str = "",
        masked: bool = True,
    ) -> list[Recommendation]:
        """Items for each of `histories` (item ids, oldest first), drafted as one batch.

        top_k: items wanted, the limits' default if None. exclude: ids never to return, to nobody. allow_history:
        whether items of a history may come back. queries: a text for each history. masked: draft only prefixes that
        exist. rules: of everybody's request, as JSON. Raises InvalidRequest for what the limits do not allow.
        """
        texts = [""] * len(histories) if queries is None else queries
        unwanted = _encoded(exclude)
        requests = [
            Request(_encoded(history), unwanted, top_k, allow_history, text.encode(), rules.encode())
            for history, text in zip(histories, texts, strict=True)
        ]
        return self.answer(requests, masked=masked)

    def answer(self, requests: Sequence[Request], *, masked: bool = True) -> list[Recommendation]:
        """As `recommend`, for requests that differ in more than their histories."""
        if not requests:
            return []
        for request in requests:
            self.preprocessor.validate(request)
        prepared = self.preprocessor.prepare(requests)
        filters = [self.book.filters(one.rules) for one in prepared]
        narrowed = self.narrowing.of_batch(self.catalog, 0, filters)
        drafts = self.engine.draft([one.prompt for one in prepared], masked=masked, rules=masks_of(narrowed))
        wanted = np.array([one.top_k for one in prepared])
        applied = [self.book.applied(self.catalog, one.rules) for one in prepared]
        blocked = [one.blocked for one in prepared]
        histories = [one.voters for one in prepared]
        found = self.verifier.verify(drafts.codes, drafts.scores, blocked, wanted, applied, histories)
        ids = [item_id.decode() for item_id in self.catalog.ids_of(found.rows).tolist()]
        bounds = zip(found.offsets[:-1].tolist(), found.offsets[1:].tolist(), strict=True)
        return [
            Recommendation(
                item_ids=ids[start:end],
                scores=found.scores[start:end],
                source=found.source[start:end],
                drafted=int(found.drafted[number]),
                valid=int(found.valid[number]),
                unknown=prepared[number].unknown,
                filled=int(found.filled[number]),
                explanation=_explained(found, number, applied[number], narrowed[number]),
            )
            for number, (start, end) in enumerate(bounds)
        ]

    def close(self) -> None:
        """End what the engine runs outside of calls."""
        self.engine.close()


def _explained(found: Verified, number: int, applied: Applied | None, narrowed: Narrowed) -> dict[str, Any] | None:
    if applied is None or not applied.explain:
        return None
    drafted, valid = int(found.drafted[number]), int(found.valid[number])
    return explanation(found.ruled[number], narrowed.mask is not None, narrowed.items, drafted, valid)


def _encoded(item_ids: Sequence[str]) -> np.ndarray:
    """Ids as requests hold them: object [n] of bytes."""
    encoded = np.empty(len(item_ids), object)
    encoded[:] = [item_id.encode() for item_id in item_ids]
    return encoded
