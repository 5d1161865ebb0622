"""Shares of n-grams against counts made one by one."""

from __future__ import annotations

import numpy as np
import pytest

from perf.knowledge.repetition import repetition


def grams(text: np.ndarray, n: int) -> list[tuple[int, ...]]:
    return [tuple(text[at : at + n].tolist()) for at in range(len(text) - n + 1)]


def test_shares_equal_a_count_by_hand() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 4, int(rng.integers(0, 12))) for _ in range(60)]
    groups = rng.choice(["tents", "tea", "books"], 60)
    found = repetition(texts[:40], groups[:40], texts[40:], groups[40:])
    asked = [(gram, group) for text, group in zip(texts[40:], groups[40:], strict=True) for gram in grams(text, 4)]
    held = {(gram, group) for text, group in zip(texts[:40], groups[:40], strict=True) for gram in grams(text, 4)}
    anywhere = {gram for gram, _ in held}
    assert found.ngrams == len(asked)
    assert found.group == pytest.approx(np.mean([pair in held for pair in asked]))
    assert found.everything == pytest.approx(np.mean([gram in anywhere for gram, _ in asked]))
    assert found.neither == pytest.approx(1 - found.everything)


def test_ngrams_stay_inside_a_text() -> None:
    found = repetition([np.array([1, 2]), np.array([3, 4])], np.zeros(2), [np.array([2, 3])], np.zeros(1), n=2)
    assert found.everything == 0


def test_bad_input_is_refused() -> None:
    text = np.arange(5)
    with pytest.raises(ValueError, match="pool has 1 texts and 2 groups"):
        repetition([text], np.zeros(2), [text], np.zeros(1))
    with pytest.raises(ValueError, match="no 4-gram"):
        repetition([text], np.zeros(1), [text[:3]], np.zeros(1))
