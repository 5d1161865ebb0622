"""What a forward pass takes: measured on this machine, or computed for another by its bandwidth and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.optimize import nnls

from genrec.knowledge.pass_cost import stretches


class Cost(Protocol):
    """Seconds of a session's steps.

    together: whether prompts of texts that begin are in the same pass as the running texts; else in one before it.
    """

    @property
    def together(self) -> bool: ...

    def seconds(self, texts: int, packed: np.ndarray, cached: int, begun: int, prompt_tokens: int) -> np.ndarray:
        """Of steps over `texts` texts with `packed` tokens, int [n], roots and drafted ones together: float64 [n].

        cached: tokens of all texts together that are read from the cache. begun: texts that begin, with
        `prompt_tokens` tokens together.
        """


class Step(NamedTuple):
    """A step of a session that was timed: prompts that it began with, then a pass over the running texts."""

    seconds: float
    begun: int
    prompt_tokens: int
    texts: int
    cached: int
    packed: int


@dataclass(frozen=True)
class MeasuredCost:
    """Of this machine: seconds fitted to steps, linear in everything that `Step` counts, nothing negative.

    weights: float64 [10], of a pass, texts, cached tokens, a wave of prompts, tokens of prompts, and of packed tokens
    in each of `stretches`: products get faster the larger they are.
    """

    weights: np.ndarray
    together = False

    @classmethod
    def fitted(cls, steps: Sequence[Step]) -> MeasuredCost:
        """To the least relative error. The slowest twentieth for its size, where something else ran, is left out."""
        terms = np.concatenate([cls._terms(*step[1:5], np.array([step.packed])) for step in steps])
        seconds = np.array([step.seconds for step in steps])
        kept = np.ones(len(steps), bool)
        for _ in range(3):
            scaled = terms[kept] / seconds[kept, None]
            weights = nnls(scaled, np.ones(len(scaled)))[0]
            over = seconds / np.maximum(terms @ weights, 1e-9)
            kept = over <= np.quantile(over, 0.95)
        return cls(weights)

    @staticmethod
    def _terms(begun: int, prompt_tokens: int, texts: int, cached: int, packed: np.ndarray) -> np.ndarray:
        told = np.array([texts > 0, texts, cached, begun > 0, prompt_tokens], float)
        return np.column_stack([np.broadcast_to(told, (packed.size, told.size)), stretches(packed)])

    def seconds(self, texts: int, packed: np.ndarray, cached: int, begun: int, prompt_tokens: int) -> np.ndarray:
        return np.asarray(self._terms(begun, prompt_tokens, texts, cached, packed) @ self.weights)


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
    together = True

    def seconds(self, texts: int, packed: np.ndarray, cached: int, begun: int, prompt_tokens: int) -> np.ndarray:
        tokens = packed + prompt_tokens
        seen = packed * cached / max(1, texts) + prompt_tokens**2 / max(1, begun) / 2
        moved = self.parameters * self.weight_bytes + self.cache_bytes * (cached + tokens)
        computed = 2 * self.parameters * tokens + self.attention * seen
        by_memory = moved / (self.bandwidth * self.bandwidth_efficiency)
        by_arithmetic = computed / (self.peak * self.peak_efficiency)
        return np.asarray(np.maximum(by_memory, by_arithmetic) + self.overhead_s)


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
