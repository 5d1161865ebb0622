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
from genrec.verifier import Verifier


@dataclass(frozen=True)
class Recommendation:
    """One user's answer; the fields are the wire contract's outputs.

    item_ids: k distinct ids, best first. scores: float32 [k], log-probabilities of the items' semantic IDs. source:
    uint8 [k], DRAFTED or FALLBACK. drafted, valid: drafts with a finite score, and those that are live items. unknown:
    items of the history that are not in the catalogue. filled: items from the popularity fallback.
    """

    item_ids: list[str]
    scores: np.ndarray
    source: np.ndarray
    drafted: int
    valid: int
    unknown: int
    filled: int


class Pipeline:
    """Preprocessor, engine and verifier over one catalogue.

    engine: its draft width is the beam width. tokenizer: of a model that was trained with text queries. limits: of a
    request, the defaults of `Limits` if None.
    """

    def __init__(
        self,
        catalog: Catalog,
        index: ItemIndex,
        layout: PromptLayout,
        engine: Engine,
        tokenizer: QueryTokenizer | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.catalog, self.layout, self.engine, self.tokenizer = catalog, layout, engine, tokenizer
        self.preprocessor = Preprocessor(catalog, layout, limits or Limits(), tokenizer)
        self.verifier = Verifier(catalog, index)

    @classmethod
    def open(cls, bundle: Bundle | Path | str, engine: str | Engine = "onnx", **options: Any) -> Pipeline:
        """The pipeline of a bundle.

        engine: a name of `genrec.engines.ENGINES`, whose class takes the options, or an engine over the bundle's files.
        Raises BundleError for a bundle that cannot be read.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle(bundle)
        opened = open_engine(bundle, engine, **options) if isinstance(engine, str) else engine
        limits = bundle.manifest.limits
        return cls(bundle.catalog, bundle.index, bundle.layout, opened, bundle.query_tokenizer, limits)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top_k: int | None = None,
        *,
        exclude: Sequence[str] = (),
        allow_history: bool = False,
        queries: Sequence[str] | None = None,
        masked: bool = True,
    ) -> list[Recommendation]:
        """Items for each of `histories` (item ids, oldest first), drafted as one batch.

        top_k: items wanted, the limits' default if None. exclude: ids never to return, to nobody. allow_history:
        whether items of a history may come back. queries: a text for each history. masked: draft only prefixes that
        exist. Raises InvalidRequest for what the limits do not allow.
        """
        texts = [""] * len(histories) if queries is None else queries
        unwanted = _encoded(exclude)
        requests = [
            Request(_encoded(history), unwanted, top_k, allow_history, text.encode())
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
        drafts = self.engine.draft([one.prompt for one in prepared], masked=masked)
        wanted = np.array([one.top_k for one in prepared])
        found = self.verifier.verify(drafts.codes, drafts.scores, [one.blocked for one in prepared], wanted)
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
            )
            for number, (start, end) in enumerate(bounds)
        ]

    def close(self) -> None:
        """End what the engine runs outside of calls."""
        self.engine.close()


def _encoded(item_ids: Sequence[str]) -> np.ndarray:
    """Ids as requests hold them: object [n] of bytes."""
    encoded = np.empty(len(item_ids), object)
    encoded[:] = [item_id.encode() for item_id in item_ids]
    return encoded
