"""What running texts repeat of themselves: numbers and names of their prompts, phrases that they wrote before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.knowledge.continuations import MAX_CONTEXT, MAX_DEPTH, ROWS, SHIFT, Continuations

_CUT = np.full(MAX_DEPTH, -SHIFT, np.int32)  # around texts: no token, and code 0
_BACK, _BEHIND = np.arange(MAX_CONTEXT), np.arange(1, MAX_DEPTH + 1)


def repeats(
    texts: Sequence[np.ndarray], dtype: np.dtype, least: int = 2, most: int = MAX_CONTEXT, source: int = 0
) -> Continuations:
    """What followed earlier occurrences of the last tokens of `texts`, int32 [any length] each, in the same text.

    All texts are searched at once. dtype: of the codes in `Continuations.suffixes`, that of a pool. least, most: tokens
    to match, the latter 1 to 8; a single one says little of what follows. source: as in `Continuations`.
    """
    # So much between texts that no window reaches from one into another. A text's own end is no end of what may be
    # written: what is behind it is cut, as a marker is in a pool.
    flat = np.concatenate([part for text in texts for part in (_CUT, text)] + [_CUT], dtype=np.int32)
    sizes = np.array([text.size for text in texts])
    lasts = (sizes + MAX_DEPTH).cumsum() - 1
    sought = flat.take(lasts)
    sought[sizes == 0] = -1  # is nowhere
    # Where the last token occurs before; then how many tokens before it are the same too.
    owner = np.arange(sizes.size).repeat(sizes + MAX_DEPTH)
    at = (flat[: owner.size] == sought.take(owner)).nonzero()[0]
    text = owner.take(at)
    earlier = (at < lasts.take(text)).nonzero()[0]
    at, text = at.take(earlier), text.take(earlier)
    back = _BACK[:most]
    same = flat.take(at[:, None] - back) == flat.take(lasts[:, None] - back).take(text, axis=0)
    length = np.logical_and.accumulate(same, axis=1).sum(1)
    longest = np.full(sizes.size, least)
    np.maximum.at(longest, text, length)
    chosen = (length == longest.take(text)).nonzero()[0]
    if chosen.size > ROWS:  # the newest of each text
        of = text.take(chosen)
        chosen = chosen[of.searchsorted(of, "right") - np.arange(of.size) <= ROWS]
    at, text = at.take(chosen), text.take(chosen)
    codes = (flat.take(at[:, None] + _BEHIND) + SHIFT).astype(dtype)
    found = np.bincount(text, minlength=sizes.size) > 0
    matched = found.nonzero()[0]
    return Continuations(
        texts=matched,
        sources=np.full(matched.size, source),
        lengths=longest.take(matched),
        steps=np.ones(matched.size, np.int64),
        owners=(found.cumsum() - 1).take(text),
        suffixes=codes.view(f"S{MAX_DEPTH * dtype.itemsize}")[:, 0],
    )
