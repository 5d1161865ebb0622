"""Searches retrieval pools for the ends of running texts: all texts and all lengths at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genrec.knowledge.continuations import MAX_CONTEXT, MAX_DEPTH, ROWS, SHIFT, START, Continuations

if TYPE_CHECKING:
    from genrec.knowledge.pool import RetrievalPool, Segment

# Ends of a context that is right-aligned before as many zeros: row l holds its last l + 1 codes, left-aligned.
_ENDS = MAX_CONTEXT - 1 - np.arange(MAX_CONTEXT)[:, None] + np.arange(MAX_CONTEXT)
_LENGTHS = np.arange(1, MAX_CONTEXT + 1)
_BEFORE = np.full(MAX_CONTEXT, -SHIFT, np.int32)  # before the start of a text: code 0


def needles(texts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The ends of `texts`, int [any length] each, as a pool of `dtype` holds them: bytes [2, texts, 8].

    [0, i, l] is the last l + 1 codes of text i; [1, i, l] the same with the last one up by one, where suffixes that
    begin with it end.
    """
    # A text that is shorter has zeros on the left, which no text of a pool has before its start; and the start is a
    # code like any other: how texts begin is matched by it.
    lacking = [max(0, MAX_CONTEXT - len(text)) for text in texts]
    tails = [part for text, less in zip(texts, lacking, strict=True) for part in (_BEFORE[:less], text[-MAX_CONTEXT:])]
    ends = np.zeros((2, len(texts), 2 * MAX_CONTEXT), dtype)
    ends[:, :, :MAX_CONTEXT] = np.add(np.concatenate(tails), SHIFT).reshape(-1, MAX_CONTEXT)
    if short := [row for row, less in enumerate(lacking) if less]:
        ends[:, short, np.array(lacking).take(short) - 1] = START
    ends[1, :, MAX_CONTEXT - 1] += 1
    return ends.take(_ENDS, axis=2).view(f"S{MAX_CONTEXT * dtype.itemsize}")[..., 0]


class Ranges(NamedTuple):
    """Suffixes of segments that begin with the longest end of a text that its pool holds: int64 [r] each.

    segments: theirs. bounds: where the ranges of each segment end. asked: number of the search. first, last: the
    suffixes first to last - 1.
    """

    segments: list[Segment]
    bounds: list[int]
    asked: np.ndarray
    first: np.ndarray
    last: np.ndarray


def longest(pools: Sequence[RetrievalPool], sought: np.ndarray) -> tuple[np.ndarray, Ranges]:
    """Of each search: the length of its longest needle that its pool holds, int64 [searches]; and where it is.

    pools: one per search. sought: bytes [2, searches, lengths] as of `needles`.
    """
    members: dict[Segment, list[int]] = {}
    for number, pool in enumerate(pools):
        for segment in pool.segments:
            members.setdefault(segment, []).append(number)
    most, none = np.zeros(len(pools), np.int64), np.empty(0, np.int64)
    if not members:
        return most, Ranges([], [], none, none, none)
    # From here on by pairs of a segment and a search.
    search = np.array([number for numbers in members.values() for number in numbers])
    asked, around, ends = sought[:, search], [], [0]
    for segment, numbers in members.items():
        ends.append(ends[-1] + len(numbers))
        around.append(segment.around(asked[:, ends[-2] : ends[-1]]))
    low, suffixes = (
        parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) for parts in zip(*around, strict=True)
    )
    sizes = np.array([segment.order.size for segment, numbers in members.items() for _ in numbers])
    first, last = np.minimum(low + (suffixes < asked[..., None]).sum(-1), sizes[:, None])
    lengths = ((last > first) * _LENGTHS[: first.shape[1]]).max(1)
    np.maximum.at(most, search, lengths)
    pair = ((lengths == most.take(search)) & (lengths > 0)).nonzero()[0]
    at = pair * first.shape[1] + lengths.take(pair) - 1
    bounds = pair.searchsorted(ends[1:]).tolist()
    return most, Ranges(list(members), bounds, search.take(pair), first.take(at), last.take(at))


def continuations(
    pools: Sequence[RetrievalPool],
    texts: Sequence[np.ndarray],
    asked: np.ndarray,
    sources: np.ndarray | None = None,
    most: int = MAX_CONTEXT,
) -> Continuations:
    """What follows the longest end of some texts in pools of one vocabulary size; nothing where there is no match.

    texts: int [any length] each, from their first token on. pools[i] is searched for text asked[i], int64, as source
    sources[i], int64, 0 by default. most: tokens to match.
    """
    dtype = pools[0].dtype
    lengths, ranges = longest(pools, needles(texts, dtype)[:, asked, :most])
    occurrences = np.bincount(ranges.asked, ranges.last - ranges.first, len(pools)).astype(np.int64)
    steps = np.maximum(-(-occurrences // ROWS), 1)
    step = steps.take(ranges.asked)
    first = ranges.first + step // 2
    rows = np.maximum(-(-(ranges.last - first) // step), 0)
    of = np.arange(rows.size).repeat(rows)
    suffixes = first.take(of) + (np.arange(of.size) - (rows.cumsum() - rows).take(of)) * step.take(of)
    search = ranges.asked.take(of)
    behind, parts, begin = lengths.take(search), [], 0
    for segment, end in zip(ranges.segments, np.append(0, rows.cumsum()).take(ranges.bounds).tolist(), strict=True):
        if end > begin:
            parts.append(segment.behind(suffixes[begin:end], behind[begin:end]))
        begin = end
    matched = lengths.nonzero()[0]
    return Continuations(
        texts=asked.take(matched),
        sources=np.zeros(matched.size, np.int64) if sources is None else sources.take(matched),
        lengths=lengths.take(matched),
        steps=steps.take(matched),
        owners=matched.searchsorted(search),
        suffixes=np.concatenate(parts) if parts else np.empty(0, f"S{MAX_DEPTH * dtype.itemsize}"),
    )
