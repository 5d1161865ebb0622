"""The golden request: what an engine may draft differently, and what it may not."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.catalog import PrefixTable, PrefixTrie, SemanticIdSpace
from genrec.engines.base import Engine
from genrec.golden import GoldenMismatch, check_drafts, check_prompt, golden_query
from genrec.prompt import Preprocessor

SPACE = SemanticIdSpace((4, 4))
TABLE = PrefixTable.build(SPACE, np.array([0]))
CODES, SCORES = np.array([3, 9, 1, 12, 0]), np.array([-1.0, -2.0, -2.0005, -4.0, -np.inf], np.float32)
GOLDEN = {"prompt": np.array([1, 2], np.int32), "codes": CODES, "scores": SCORES}


class Fixed(Engine):
    """Drafts the same for every prompt."""

    def __init__(self, codes: np.ndarray, scores: np.ndarray, beam_width: int = 5) -> None:
        super().__init__(TABLE, beam_width)
        self.drafts = codes[None], scores.astype(np.float32)[None]

    def _prepared(self, masks: PrefixTable | PrefixTrie) -> None:
        return None

    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, masks: None, rules: object
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.drafts


def test_the_same_drafts_pass_and_so_do_near_ties_in_other_places() -> None:
    check_drafts(GOLDEN, Fixed(CODES, SCORES))
    check_drafts(GOLDEN, Fixed(CODES, SCORES + np.float32(0.0009)))
    check_drafts(GOLDEN, Fixed(CODES[[0, 2, 1, 3, 4]], SCORES))
    check_drafts(GOLDEN, Fixed(np.array([3, 9, 1, 7, 0]), SCORES))  # what ties with the last one may come in its place


@pytest.mark.parametrize(
    ("codes", "scores", "message"),
    [
        (CODES, SCORES + np.float32(0.01), "scores differ from the build's by 0.01"),
        (CODES, np.append(SCORES[:4], -9.0), "scores differ from the build's by inf"),
        (CODES[[1, 0, 2, 3, 4]], SCORES, "drafted code 9 with score -1"),
        (np.array([3, 7, 1, 12, 0]), SCORES, "drafted code 7 with score -2"),
    ],
    ids=["scores", "a beam that was dead", "places", "codes"],
)
def test_other_drafts_are_refused(codes: np.ndarray, scores: np.ndarray, message: str) -> None:
    with pytest.raises(GoldenMismatch, match=message):
        check_drafts(GOLDEN, Fixed(codes, scores))


def test_a_lower_precision_may_draft_a_few_others() -> None:
    codes, scores = np.arange(20), np.linspace(-1, -10, 20).astype(np.float32)
    golden = GOLDEN | {"codes": codes, "scores": scores}
    others = np.array([*codes[:5], 101, 102, *codes[7:]])

    def drafted(of: np.ndarray, tolerance: float) -> Fixed:
        engine = Fixed(of, scores, 20)
        engine.score_tolerance = tolerance
        return engine

    check_drafts(golden, drafted(others, 0.25))
    with pytest.raises(GoldenMismatch, match=r"drafted code 101 with score -3\.3684 and 1 more, the build did not"):
        check_drafts(golden, drafted(others, 1e-3))
    others[9] = 103
    with pytest.raises(GoldenMismatch, match=r"drafted code 101 with score -3\.3684 and 2 more, the build did not"):
        check_drafts(golden, drafted(others, 0.25))


def test_another_number_of_beams_is_refused() -> None:
    with pytest.raises(GoldenMismatch, match="the graph drafts 4 beams, the manifest says beam_width 5"):
        check_drafts(GOLDEN, Fixed(CODES[:4], SCORES[:4]))


def test_the_golden_request_has_a_query(text_bundle: Bundle) -> None:
    golden, limits = text_bundle.golden, text_bundle.manifest.limits
    assert golden_query(golden)
    check_prompt(golden, Preprocessor(text_bundle.catalog, text_bundle.layout, limits, text_bundle.query_tokenizer))
    with pytest.raises(GoldenMismatch):  # without a tokenizer the query is not read
        check_prompt(golden, Preprocessor(text_bundle.catalog, text_bundle.layout, limits))
