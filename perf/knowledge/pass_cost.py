"""What a forward pass takes: measured on this machine, or computed for another by its bandwidth and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]


class Cost(Protocol):
    """Seconds of passes."""

    def step(self, texts: int, packed: np.ndarray, cached: int) -> np.ndarray:
        """Over `texts` texts with `packed` tokens, int [n], roots and drafted ones together: float64 [n].

        cached: tokens of all texts together that are read from the cache.
        """

    def prefill(self, texts: int, tokens: int) -> float:
        """Over the prompts of `texts` texts, `tokens` together."""


class Step(NamedTuple):
    """A step of a session that was timed: prompts that it began with, then a pass over the running texts."""

    seconds: float
    begun: int
    prompt_tokens: int
    texts: int
    packed: int
    cached: int


@dataclass(frozen=True)
class MeasuredCost:
    """Of this machine: seconds fitted to steps, linear in everything that `Step` counts, nothing negative.

    weights: float64 [6] of a pass, texts, packed and cached tokens, a wave of prompts, and tokens of prompts.
    """

    weights: np.ndarray

    @classmethod
    def fitted(cls, steps: Sequence[Step]) -> MeasuredCost:
        """To the least relative error. The slowest twentieth for its size, where something else ran, is left out."""
        terms = np.array([cls._terms(step) for step in steps])
        seconds = np.array([step.seconds for step in steps])
        kept = np.ones(len(steps), bool)
        for _ in range(3):
            scaled = terms[kept] / seconds[kept, None]
            weights = nnls(scaled, np.ones(len(scaled)))[0]
            over = seconds / np.maximum(terms @ weights, 1e-9)
            kept = over <= np.quantile(over, 0.95)
        return cls(weights)

    @staticmethod
    def _terms(step: Step) -> tuple[float, ...]:
        return (step.texts > 0, step.texts, step.packed, step.cached, step.begun > 0, step.prompt_tokens)

    def step(self, texts: int, packed: np.ndarray, cached: int) -> np.ndarray:
        of_pass, of_text, of_packed, of_cached = self.weights[:4]
        return np.asarray(of_pass + of_text * texts + of_packed * packed + of_cached * cached)

    def prefill(self, texts: int, tokens: int) -> float:
        return float(self.weights[4] + self.weights[5] * tokens)


@dataclass(frozen=True)
class RooflineCost:
    """Of a model on a GPU: whichever takes longer of moving bytes and of arithmetic, and a fixed time per pass.

    Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.

    parameters: of the model, each read once a pass at `weight_bytes`, 2 FLOPs for each token. cache_bytes: of a token's
    keys and values in all layers. attention: FLOPs of a token for each token that it attends to. bandwidth: bytes per
    second; peak: FLOPs per second; each times its efficiency. overhead_s: per pass, for launches and the host.
    """

    parameters: float
    cache_bytes: float
    attention: float
    bandwidth: float
    peak: float
    bandwidth_efficiency: float
    peak_efficiency: float
    overhead_s: float
    weight_bytes: float = 2.0

    def step(self, texts: int, packed: np.ndarray, cached: int) -> np.ndarray:
        moved = self.parameters * self.weight_bytes + self.cache_bytes * (cached + packed)
        computed = 2 * self.parameters * packed + self.attention * packed * cached / max(1, texts)
        return np.asarray(self._seconds(moved, computed))

    def prefill(self, texts: int, tokens: int) -> float:
        moved = self.parameters * self.weight_bytes + self.cache_bytes * tokens
        computed = 2 * self.parameters * tokens + self.attention * tokens * tokens / max(1, texts) / 2
        return float(self._seconds(np.array(moved), np.array(computed)))

    def _seconds(self, moved: np.ndarray, computed: np.ndarray) -> np.ndarray:
        by_memory = moved / (self.bandwidth * self.bandwidth_efficiency)
        by_arithmetic = computed / (self.peak * self.peak_efficiency)
        return np.maximum(by_memory, by_arithmetic) + self.overhead_s


# A 7 B model of Qwen2.5's shape (7.6 B parameters, 28 layers, 28 heads and 4 key-value heads of 128) in bf16 on an H100
# SXM: NVIDIA's data sheet has 3.35 TB/s and 989 TFLOP/s dense. Efficiencies and overhead are assumptions: what good
# kernels reach, and a millisecond for launches, sampling and the scheduler.
H100_7B = RooflineCost(
    parameters=7.6e9,
    cache_bytes=28 * 2 * 4 * 128 * 2,
    attention=28 * 28 * 128 * 4,
    bandwidth=3.35e12,
    peak=989e12,
    bandwidth_efficiency=0.8,
    peak_efficiency=0.6,
    overhead_s=1e-3,
)
