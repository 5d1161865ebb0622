"""The golden request: one history (and query) with the answer of every step, kept in the bundle.

Each step of the served ensemble repeats its own part before it reports ready, so that an engine that computes
something else than the one the bundle was built with never serves a request.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genrec.catalog import Catalog
from genrec.engines.base import EXACT, Engine
from genrec.pipeline import Pipeline
from genrec.prompt import Preprocessor, PromptLayout, Request
from genrec.verifier import Verifier

_TOP_K = np.array([10])
# The share of its beams that an engine of a lower precision may draft besides the build's: where prefixes nearly tie at
# the edge of the beam, another one stays in it, and what grows of that may come out far from the edge.
_OTHERS = 0.1
_NO_ITEMS = np.empty(0, object)


class GoldenMismatch(RuntimeError):
    """A step answered its golden request differently from the build."""


def write_golden(path: Path, history: np.ndarray, pipeline: Pipeline, query: bytes = b"") -> None:
    """Record what every step of `pipeline` answers to `history` (int32 [N], catalogue rows) in `path` (`.npz`).

    query: for a pipeline with text queries; ignored by one without.
    """
    catalog = pipeline.catalog
    query = query if pipeline.tokenizer else b""
    item_ids = catalog.item_ids[history]
    request = Request(item_ids.astype(object), _NO_ITEMS, query=query)
    prepared = pipeline.preprocessor.prepare([request])[0]
    drafts = pipeline.engine.draft([prepared.prompt])
    voters = [prepared.voters]
    verified = pipeline.verifier.verify(drafts.codes, drafts.scores, [history], _TOP_K, histories=voters)
    np.savez(
        path,
        history=item_ids,
        query=np.frombuffer(query, np.uint8),
        prompt=prepared.prompt,
        codes=drafts.codes[0],
        scores=drafts.scores[0],
        items=catalog.item_ids[verified.rows],
    )


def golden_query(golden: dict[str, np.ndarray]) -> bytes:
    """The golden request's text query; empty in bundles without queries, and in those from before there were any."""
    return golden["query"].astype(np.uint8).tobytes() if "query" in golden else b""


def check_prompt(golden: dict[str, np.ndarray], preprocessor: Preprocessor) -> None:
    """Raise GoldenMismatch unless `preprocessor` makes the golden prompt of the golden history and query."""
    request = Request(golden["history"].astype(object), _NO_ITEMS, query=golden_query(golden))
    prompt = preprocessor.prepare([request])[0].prompt
    if not np.array_equal(prompt, golden["prompt"]):
        raise GoldenMismatch(f"golden history gave prompt {prompt.tolist()}, expected {golden['prompt'].tolist()}")


def check_drafts(golden: dict[str, np.ndarray], engine: Engine) -> None:
    """Raise GoldenMismatch unless `engine` drafts what the build did: same scores, same codes up to near ties.

    In a lower precision a tenth of the codes may be others.
    """
    drafts = engine.draft([golden["prompt"]])
    scores, codes = drafts.scores[0], drafts.codes[0]
    if scores.shape != (engine.beam_width,):
        raise GoldenMismatch(f"the graph drafts {scores.size} beams, the manifest says beam_width {engine.beam_width}")
    finite = np.isfinite(golden["scores"])
    same_shape = scores.shape == golden["scores"].shape and np.array_equal(np.isfinite(scores), finite)
    gap = np.abs(scores[finite] - golden["scores"][finite]).max(initial=0.0) if same_shape else np.inf
    tolerance = engine.score_tolerance
    if not gap <= tolerance:
        raise GoldenMismatch(f"the engine's scores differ from the build's by {gap:.3g}, more than {tolerance}")
    score_of = dict(zip(golden["codes"][finite].tolist(), golden["scores"][finite].tolist(), strict=True))
    edge = golden["scores"][finite].min(initial=np.inf) + tolerance
    others = []
    for code, score in zip(codes[finite].tolist(), scores[finite].tolist(), strict=True):
        if abs(score_of.get(code, edge) - score) > 2 * tolerance:
            others.append(f"code {code} with score {score:.4f}")
    if len(others) > (0 if tolerance <= EXACT else _OTHERS * finite.sum()):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise GoldenMismatch(f"the engine drafted {others[0]}{more}, the build did not")


def check_items(golden: dict[str, np.ndarray], catalog: Catalog, layout: PromptLayout, verifier: Verifier) -> None:
    """Raise GoldenMismatch unless `verifier` turns the golden drafts into the golden items."""
    history = catalog.rows_of(golden["history"].astype(object))
    voters = [history[:0] if golden_query(golden) else layout.recent(history)]
    verified = verifier.verify(golden["codes"][None], golden["scores"][None], [history], _TOP_K, histories=voters)
    items = catalog.item_ids[verified.rows]
    if not np.array_equal(items, golden["items"]):
        raise GoldenMismatch(f"golden drafts gave items {items.tolist()}, expected {golden['items'].tolist()}")
