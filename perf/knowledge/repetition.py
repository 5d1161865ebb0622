"""How repetitive texts are: which share of a text's n-grams other texts hold.

That bounds what retrieval can draft (DARE, arXiv 2408.05676): a draft can be right only where a text repeats what the
pool holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Repetition:
    """Shares of the held-out texts' n-grams. ngrams: how many these are.

    group: those that a pool text of the same group holds. everything: that any pool text holds. neither: that none
    does, 1 - everything.
    """

    group: float
    everything: float
    neither: float
    ngrams: int


def repetition(
    pool: Sequence[np.ndarray],
    pool_groups: np.ndarray,
    held_out: Sequence[np.ndarray],
    held_out_groups: np.ndarray,
    n: int = 4,
) -> Repetition:
    """How many of the n-grams of `held_out` occur in `pool`, counted with their repetitions.

    pool, held_out: integer token ids [T] of each text, none negative. pool_groups, held_out_groups: a label for each
    text, such as int64 or strings. N-grams do not reach from one text into another; texts shorter than n have none.
    Raises ValueError where texts and labels differ in number, or the held-out texts have no n-gram.
    """
    for name, texts, groups in (("pool", pool, pool_groups), ("held_out", held_out, held_out_groups)):
        if len(texts) != len(groups):
            raise ValueError(f"{name} has {len(texts)} texts and {len(groups)} groups; give each text one")
    grams, owner = _ngrams([*pool, *held_out], n)
    asked = owner >= len(pool)
    if not asked.any():
        raise ValueError(f"the {len(held_out)} held-out texts have no {n}-gram; give longer texts")
    groups = np.unique(np.concatenate([pool_groups, held_out_groups]), return_inverse=True)[1][owner]
    # One number per distinct n-gram, and one per distinct n-gram in a group.
    gram = np.unique(grams, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    in_group = gram * (int(groups.max()) + 1) + groups
    shares = [float(np.isin(numbers[asked], numbers[~asked]).mean()) for numbers in (in_group, gram)]
    return Repetition(shares[0], shares[1], 1.0 - shares[1], int(asked.sum()))


def _ngrams(texts: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(every n-gram, int64 [G, n]; the text that it is of, int64 [G])."""
    lengths = np.array([len(text) for text in texts], np.int64)
    tokens = np.concatenate([np.asarray(text, np.int64) for text in texts])
    if tokens.size < n:
        return np.empty((0, n), np.int64), np.empty(0, np.int64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    inside = owner[: tokens.size - n + 1] == owner[n - 1 :]
    return np.lib.stride_tricks.sliding_window_view(tokens, n)[inside], owner[: tokens.size - n + 1][inside]
