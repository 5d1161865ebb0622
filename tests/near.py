"""Comparisons of rankings and texts whose scores were not computed by the very same call.

Another processor, engine, batch or number of threads adds up in another order: scores differ in their last bits, and
what nearly ties may change places, also with what the end of the list cuts off.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from genrec.engines.base import Drafts
from genrec.verifier import FALLBACK_SCORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from genrec_client import Recommendations

# Models as small as the tests' differ by some 1e-6 in float32. A tenth of what the engines allow of large ones.
NEAR = 1e-4
RELATIVE = 1e-5  # and of scores far from 0, some hundred times their last bit


def allowed(score: Any, tolerance: float = NEAR) -> Any:
    """By how much a score, or an array of them, may differ between kernels."""
    return tolerance + RELATIVE * np.abs(score)


def difference(
    ours: Sequence[Hashable],
    our_scores: Sequence[float] | np.ndarray,
    theirs: Sequence[Hashable],
    their_scores: Sequence[float] | np.ndarray,
    tolerance: float = NEAR,
) -> str | None:
    """What tells two rankings apart by more than near ties, or None.

    ours, theirs: keys (codes or item ids), best first. Items of the popularity fallback are compared exactly.
    """
    scores, expected = np.asarray(our_scores, np.float64), np.asarray(their_scores, np.float64)
    if not len(ours) == len(theirs) == scores.size == expected.size:
        return f"{len(ours)} and {len(theirs)} keys with {scores.size} and {expected.size} scores"
    if len(set(ours)) < len(ours):
        return "a key occurs twice"
    drafted = int((expected != FALLBACK_SCORE).sum())
    near = np.abs(scores - expected) <= allowed(expected, tolerance)
    if not near.all():
        place = int(np.argmin(near))
        return f"place {place} has score {scores[place]}, not {expected[place]}"
    score_of = dict(zip(theirs[:drafted], expected.tolist(), strict=False))
    for key, score in zip(ours[:drafted], scores.tolist(), strict=False):
        wanted = score_of.get(key, expected[drafted - 1])
        if abs(score - wanted) > 2 * allowed(wanted, tolerance):
            return f"{key} has score {score}, not {wanted}" + ("" if key in score_of else ", the last one's")
    if set(ours[:drafted]) == score_of.keys() and list(ours[drafted:]) != list(theirs[drafted:]):
        return f"fallback items {list(ours[drafted:])}, not {list(theirs[drafted:])}"
    return None


def assert_same_ranking(
    ours: Sequence[Hashable], our_scores: Any, theirs: Sequence[Hashable], their_scores: Any, tolerance: float = NEAR
) -> None:
    """Two rankings are the same up to near ties; see `difference`."""
    found = difference(ours, our_scores, theirs, their_scores, tolerance)
    assert found is None, found


def assert_same_items(ours: Recommendations, theirs: Recommendations) -> None:
    """Two answers that the client got recommend the same; see `difference`."""
    assert [item.source for item in ours.items] == [item.source for item in theirs.items]
    scores = ([item.score for item in answer.items] for answer in (ours, theirs))
    assert_same_ranking(ours.item_ids, next(scores), theirs.item_ids, next(scores))


def assert_same_drafts(ours: Drafts, theirs: Drafts, tolerance: float = NEAR, apart: float = 0.3) -> None:
    """Two engines drafted the same, row by row, up to near ties.

    apart: the least share of neighbours that do not tie, without which the comparison would show little.
    """
    finite = np.isfinite(theirs.scores)
    np.testing.assert_array_equal(np.isfinite(ours.scores), finite)
    for row, live in enumerate(finite):
        found = difference(
            ours.codes[row][live].tolist(),
            ours.scores[row][live],
            theirs.codes[row][live].tolist(),
            theirs.scores[row][live],
            tolerance,
        )
        assert found is None, f"row {row}: {found}"
    with np.errstate(invalid="ignore"):
        steps = (-np.diff(theirs.scores, axis=1) > 2 * allowed(theirs.scores[:, 1:], tolerance))[finite[:, 1:]]
    assert not steps.size or steps.mean() >= apart, "nearly everything ties: this shows nothing"


def narrowest_choice(model: PreTrainedModel, tokens: Sequence[int], start: int) -> float:
    """By how much the logit of what was written led the next best, at the closest of the choices of `tokens[start:]`.

    A text whose narrowest choice is above NEAR is written greedily again, whatever it is batched with.
    """
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([list(tokens)])).logits[0, start - 1 : -1]
        written = torch.tensor(list(tokens[start:]))[:, None]
        others = logits.scatter(1, written, -torch.inf).amax(1)
        return float((logits.gather(1, written)[:, 0] - others).min())
