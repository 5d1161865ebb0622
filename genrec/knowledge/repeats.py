"""What running texts repeat of themselves: numbers and names of their prompts, phrases that they wrote before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.knowledge.continuations import MAX_CONTEXT, MAX_DEPTH, ROWS, SHIFT, Continuations


def repeats(texts: Sequence[np.ndarray], dtype: np.dtype, least: int = 2, most: int = MAX_CONTEXT) -> Continuations:
    """What followed earlier occurrences of the last tokens of `texts`, int32 [any length] each, in the same text.

    All texts are searched at once. dtype: of the codes in `Continuations.suffixes`, that of a pool. least, most: tokens
    to match; a single one says little of what follows.
    """
    sizes = np.array([text.size for text in texts])
    ends = sizes.cumsum()
    flat = np.concatenate([*texts, np.empty(MAX_DEPTH, np.int32)])
    last = np.where(sizes > 0, ends - 1, 0)
    owner = np.arange(sizes.size).repeat(sizes)
    # Where the last token occurs before; then how many tokens before it are the same too.
    at = (flat[: owner.size] == flat[last].take(owner)).nonzero()[0]
    text = owner.take(at)
    at, text = (array.take((at < last.take(text)).nonzero()[0]) for array in (at, text))
    length, same = np.ones(at.size, np.int64), np.ones(at.size, bool)
    inside = at - (ends - sizes).take(text)  # tokens before, of the same text
    for back in range(1, most):
        same &= (inside >= back) & (flat.take(at - back) == flat.take(last.take(text) - back))
        if not same.any():
            break
        length += same
    longest = np.full(sizes.size, least)
    np.maximum.at(longest, text, length)
    chosen = (length == longest.take(text)).nonzero()[0]
    chosen = chosen[_sample(text.take(chosen))]
    at, text = at.take(chosen), text.take(chosen)
    # A text's own end is no end of what may be written: what is behind it is cut, as a marker is in a pool.
    rows = at[:, None] + np.arange(1, MAX_DEPTH + 1)
    codes = np.where(rows < ends.take(text)[:, None], flat.take(rows) + SHIFT, 0).astype(dtype)
    suffixes = codes.view(f"S{MAX_DEPTH * dtype.itemsize}")[:, 0]
    order = np.lexsort((suffixes, text))
    matched, counts = np.unique(text, return_counts=True)
    return Continuations(
        texts=matched,
        lengths=longest.take(matched),
        weights=np.ones(matched.size),
        counts=counts,
        steps=np.ones(matched.size, np.int64),
        suffixes=suffixes.take(order),
    )


def _sample(text: np.ndarray) -> np.ndarray:
    """The newest `ROWS` of each text: bool [n]. text: int64 [n], ascending."""
    return text.searchsorted(text, "right") - np.arange(text.size) <= ROWS
