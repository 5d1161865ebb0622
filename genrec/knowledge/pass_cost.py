"""What a forward pass costs on this machine: seconds of a step over some texts and packed tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

import numpy as np

# Packed tokens, between which a further one costs the same; behind the last one, too, where several passes are timed.
_KNOTS = np.array([0, 4, 16, 64, 256])
_KEPT = 128  # running passes that the fit looks at
_OFTEN = 16  # passes from one fit to the next
_FADING = 64  # passes after which those of the start count half, then a third, ...
_SWEEPS = 20


class Pass(NamedTuple):
    """A step that was timed.

    texts: that took part. packed: tokens, a root per text and what was drafted. padded: what these would be if every
    text had as many as the one with most.
    """

    texts: int
    packed: int
    padded: int
    seconds: float


class PassCost:
    """seconds = fixed + per text + per padded token + piecewise linear in the packed tokens, none of it negative.

    Fitted, to the least relative error, to passes measured at the start, and again and again to those that run: under
    another load, with longer texts or on a machine that has slowed down it still tells what one more token costs. A
    pass that took more than twice what was expected, such as one that another process interrupted, counts as twice.

    measured: passes of different sizes, at least one.
    """

    def __init__(self, measured: Sequence[Pass]) -> None:
        self._start = list(measured)
        self._running: deque[Pass] = deque(maxlen=_KEPT)
        self._scale, self._learnt = 1.0, 0
        self._weights = np.zeros(3 + _KNOTS.size)
        self._by_packed = np.empty(0)  # seconds of 0, 1, ... packed tokens, made when asked for
        self._fit(10 * _SWEEPS)

    def seconds(self, texts: int, packed: np.ndarray, padded: np.ndarray) -> np.ndarray:
        """Of passes over `texts` texts, int [n] each as in `Pass`, the last with most packed tokens: float64 [n]."""
        fixed, per_text, per_padded = self._weights[:3].tolist()
        if packed[-1] >= self._by_packed.size:
            self._by_packed = stretches(np.arange(2 * packed[-1])) @ self._weights[3:]
        return np.asarray(self._scale * (self._by_packed.take(packed) + per_padded * padded + fixed + per_text * texts))

    def learn(self, one: Pass, expected: float | None = None) -> None:
        """Take note of a pass that ran. expected: what `seconds` said of it, if that is known."""
        if expected is None:
            expected = float(self.seconds(one.texts, np.array([one.packed]), np.array([one.padded]))[0])
        seconds = min(max(one.seconds, expected / 2), expected * 2)
        self._running.append(one._replace(seconds=seconds / self._scale))
        # The machine as a whole is faster or slower than at the start; the fit then says for what.
        self._scale *= (seconds / expected) ** 0.05
        self._learnt += 1
        if self._learnt % _OFTEN == 0:
            self._fit(_SWEEPS)

    def _fit(self, sweeps: int) -> None:
        """Least squares without negative weights, by coordinate descent (Franc et al., 2005)."""
        texts, packed, padded, seconds = map(np.array, zip(*self._start, *self._running, strict=True))
        trust = np.ones(texts.size)
        trust[: len(self._start)] = 1 / (1 + self._learnt / _FADING)
        terms = _terms(texts, packed, padded) / seconds[:, None]
        # Of eight terms: a quarter of the time that arrays take.
        products, target = (terms.T @ (trust[:, None] * terms)).tolist(), (trust @ terms).tolist()
        weights = self._weights.tolist()
        moved = [term for term in range(len(weights)) if products[term][term]]
        for _ in range(sweeps):
            for term in moved:
                left = target[term] - sum(map(mul, products[term], weights))
                weights[term] = max(0.0, weights[term] + left / products[term][term])
        self._weights = np.array(weights)
        self._by_packed = np.empty(0)


def stretches(packed: np.ndarray) -> np.ndarray:
    """How many of the packed tokens, int [n], are in each stretch between knots: float64 [n, 5]."""
    return np.asarray(np.clip(packed[:, None] - _KNOTS, 0, np.append(np.diff(_KNOTS), np.inf)))


def _terms(texts: np.ndarray, packed: np.ndarray, padded: np.ndarray) -> np.ndarray:
    """float64 [n, terms]: one, texts, padded tokens, and the packed tokens within each stretch between knots."""
    return np.column_stack([np.ones(packed.size), texts, padded, stretches(packed)])
