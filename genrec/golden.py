"""The golden request: one history (and query) with the answer of every step, kept in the bundle.

Each step of the served ensemble repeats its own part before it reports ready, so that an engine that computes
something else than the one the bundle was built with never serves a request.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genrec.catalog import Catalog
from genrec.engines.base import Engine
from genrec.prompt import PromptLayout
from genrec.query import QueryTokenizer
from genrec.verifier import Verifier


class GoldenMismatch(RuntimeError):
    """A step answered its golden request differently from the build."""


def write_golden(
    path: Path,
    history: np.ndarray,
    catalog: Catalog,
    layout: PromptLayout,
    engine: Engine,
    verifier: Verifier,
    tokenizer: QueryTokenizer | None = None,
    query: bytes = b"",
) -> None:
    """Record the answers to `history` (int32 [N], catalogue rows) of every step in `path` (`.npz`).

    tokenizer, query: for a bundle with text queries; without a tokenizer there is no query.
    """
    query_tokens = tokenizer.encode_batch([query])[0] if tokenizer else np.empty(0, np.int32)
    prompt = layout.encode(catalog.sids[history], query_tokens)
    drafts = engine.draft([prompt])
    verified = verifier.verify(drafts.codes, drafts.scores, [history], np.array([10]))
    np.savez(
        path,
        history=catalog.item_ids[history],
        query=np.frombuffer(query if tokenizer else b"", np.uint8),
        prompt=prompt,
        codes=drafts.codes[0],
        scores=drafts.scores[0],
        items=catalog.item_ids[verified.rows],
    )


def golden_query(golden: dict[str, np.ndarray]) -> bytes:
    """The golden request's text query; empty in bundles without queries, and in those from before there were any."""
    return golden["query"].astype(np.uint8).tobytes() if "query" in golden else b""


def check_prompt(golden: dict[str, np.ndarray], prompt: np.ndarray) -> None:
    """Raise GoldenMismatch unless `prompt` (int32 [P]) is the golden one."""
    if not np.array_equal(prompt, golden["prompt"]):
        raise GoldenMismatch(f"golden history gave prompt {prompt.tolist()}, expected {golden['prompt'].tolist()}")


def check_drafts(golden: dict[str, np.ndarray], engine: Engine) -> None:
    """Raise GoldenMismatch unless `engine` drafts what the build did: same scores, same codes up to near ties."""
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
    for code, score in zip(codes[finite].tolist(), scores[finite].tolist(), strict=True):
        if abs(score_of.get(code, edge) - score) > 2 * tolerance:
            raise GoldenMismatch(f"the engine drafted code {code} with score {score:.4f}, the build did not")


def check_items(golden: dict[str, np.ndarray], catalog: Catalog, verifier: Verifier) -> None:
    """Raise GoldenMismatch unless `verifier` turns the golden drafts into the golden items."""
    blocked = catalog.rows_of(golden["history"].astype(object))
    verified = verifier.verify(golden["codes"][None], golden["scores"][None], [blocked], np.array([10]))
    items = catalog.item_ids[verified.rows]
    if not np.array_equal(items, golden["items"]):
        raise GoldenMismatch(f"golden drafts gave items {items.tolist()}, expected {golden['items'].tolist()}")
