"""What may follow a running text: token trees out of what followed earlier occurrences of its last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genrec.knowledge.token_tree import EMPTY, TokenTree

MAX_NODES = 64
MAX_DEPTH = 24
MAX_CONTEXT = 8
ROWS = 32  # continuations that a tree is read from; of more, an even sample
SHIFT = 2  # codes: token t is t + 2; 0 is a place where a branch was cut out, 1 the start of a text

# Odd factors, one per level and one for texts: a branch is known by the sum of its tokens' products (multilinear
# hashing, modulo 2^64).
_FACTORS = np.random.default_rng(0).integers(0, 1 << 63, (MAX_DEPTH + 1, 1), np.uint64) * np.uint64(2) + np.uint64(1)


class Continuations(NamedTuple):
    """Matches, each the longest end of a text that a source holds, and what followed it there.

    texts: int64 [m], which text each match is of; each text's may be several, of several sources. lengths: int64 [m],
    tokens matched. weights: float64 [m], how much a source is trusted. counts: int64 [m], continuations read.
    steps: int64 [m], every which occurrence was read. suffixes: bytes of `MAX_DEPTH` big-endian codes [sum of counts],
    in order within each match.
    """

    texts: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    steps: np.ndarray
    suffixes: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Continuations]) -> Continuations:
        """The matches of all `parts`, at least one."""
        return parts[0] if len(parts) == 1 else cls(*map(np.concatenate, zip(*parts, strict=True)))


class _Nodes(NamedTuple):
    """The nodes of the tries below all matches, level by level, so that parents come first: [n] each.

    place: int64, of a node's first column, counted through the levels: level * columns + column. level: int64, from 0.
    match: int64, whose node it is. size: float64, columns that it spans, continuations that go through it.
    """

    place: np.ndarray
    level: np.ndarray
    match: np.ndarray
    size: np.ndarray


def draft_trees(
    found: Continuations,
    max_depths: Sequence[int],
    *,
    max_nodes: int = MAX_NODES,
    min_share: float = 0.0,
    discount: float = 0.0,
) -> list[TokenTree]:
    """The most frequent branches of what follows each text, as a tree for each.

    A node of count c at depth d, below a match of count m, has the share c / m, the product of the conditional
    frequencies down its branch, times (c / (c + discount))^d, what those come to if each of its d tokens has `discount`
    continuations more than were seen. So long branches of few texts are not held to be certain. Of a text with several
    matches, a node's share is the mean over them (Jelinek and Mercer's interpolation, 1980), each weighted by its
    `weights` and the square of its length: longer matches tell more.

    max_depths: 1 to `MAX_DEPTH` for each text. max_nodes: of a tree. min_share: nodes below it are left out; with
    several matches, shares are exact to a quarter of it.
    """
    if not found.suffixes.size:
        return [EMPTY] * len(max_depths)
    columns = _columns(found.suffixes, max(max_depths))
    nodes = _nodes(columns, found.counts)
    depths, weights = np.array(max_depths), _normalised(found, len(max_depths))
    shares = _shares(nodes, found, discount) * weights.take(nodes.match)
    most = np.bincount(found.texts).max()
    # What single matches add to a node's share is left out if it is small even all together.
    kept = _kept(nodes, shares, columns, depths.take(found.texts), min_share if most == 1 else min_share / most / 4)
    place, shares, text = nodes.place.take(kept), shares.take(kept), found.texts.take(nodes.match.take(kept))
    branches = np.add.accumulate((columns + SHIFT).astype(np.uint64) * _FACTORS[: len(columns)], axis=0).ravel()
    owners = text.astype(np.uint64) * _FACTORS[-1]
    keys = branches.take(place) + owners
    if most > 1:  # the same branch of several matches is one node
        order = keys.argsort()
        ordered = keys.take(order)
        begins = np.append(True, ordered[1:] != ordered[:-1])
        same = np.empty(keys.size, np.int64)
        same[order] = begins.cumsum() - 1
        together = np.bincount(same, shares)  # in the order of matches for all, so that no child exceeds its parent
        likely = (together >= min_share).nonzero()[0]
        first = order.take(begins.nonzero()[0].take(likely))
        level_by_level = place.take(first).argsort()
        first, shares = first.take(level_by_level), together.take(likely.take(level_by_level))
        keys, place, text, owners = (array.take(first) for array in (keys, place, text, owners))
    # Best first within each text; among equals those nearer to the root, so that no node comes without its parent.
    best = np.lexsort((-shares, text))
    owner = text.take(best)
    number = np.arange(best.size) - owner.searchsorted(owner)
    if best.size > max_nodes:  # else no text has too many
        among = (number < max_nodes).nonzero()[0]
        best, owner, number = best.take(among), owner.take(among), number.take(among)
    place = place.take(best)
    parents = _parents(keys.take(best), branches, place, owners.take(best), number, columns.shape[1])
    tokens, shares = columns.ravel().take(place), shares.take(best).astype(np.float32)
    ends = owner.searchsorted(np.arange(len(max_depths)), "right").tolist()
    return [
        TokenTree(tokens[begin:end], parents[begin:end], shares[begin:end])
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


def _columns(suffixes: np.ndarray, depth: int) -> np.ndarray:
    """Tokens by level, a column per continuation, those of a match side by side: int32 [depth, continuations].

    Negative behind the end of a text. Levels are rows, so that a node is a run of neighbours in memory.
    """
    codes = suffixes.view(f">u{suffixes.itemsize // MAX_DEPTH}").reshape(suffixes.size, MAX_DEPTH).T[:depth]
    return np.subtract(codes, SHIFT, dtype=np.int32)


def _nodes(columns: np.ndarray, counts: np.ndarray) -> _Nodes:
    """A node is where a column first differs from the one before it, at this level or above: columns are in order.

    columns: as of `_columns`. counts: of each match, int64 [m].
    """
    total = columns.shape[1]
    match = np.arange(counts.size).repeat(counts)
    differs = columns[:, 1:] != columns[:, :-1]
    differs[0] |= match[1:] != match[:-1]  # matches share no nodes
    begins = np.empty(columns.shape, bool)
    begins[:, 0] = True
    np.logical_or.accumulate(differs, axis=0, out=begins[:, 1:])
    place = begins.ravel().nonzero()[0]
    size = np.empty(place.size)
    size[:-1] = place[1:] - place[:-1]  # a node ends where the next one begins, each level's last one with the level
    size[-1] = begins.size - place[-1]
    level, column = np.divmod(place, total)
    return _Nodes(place, level, match.take(column), size)


def _normalised(found: Continuations, texts: int) -> np.ndarray:
    """Weights that add up to 1 for every text, float64 [m]."""
    weights = found.weights * found.lengths**2
    return weights / np.bincount(found.texts, weights, texts).take(found.texts)


def _shares(nodes: _Nodes, found: Continuations, discount: float) -> np.ndarray:
    """Of the continuations of a match, those that go on to each node, lowered by `discount`: float64 [n]."""
    shares = nodes.size / found.counts.take(nodes.match)
    if discount:  # of a sample, where a column stands for a step of occurrences, as much smaller a part of a column
        discounts = (discount / found.steps).take(nodes.match)
        shares *= (nodes.size / (nodes.size + discounts)) ** (nodes.level + 1)
    return shares


def _kept(
    nodes: _Nodes, shares: np.ndarray, columns: np.ndarray, max_depths: np.ndarray, min_share: float
) -> np.ndarray:
    """Which nodes may be drafted, int64: likely enough, no deeper than their text may go, and within the texts.

    max_depths: int64 [m], of each match.
    """
    kept = shares >= min_share
    if max_depths.min() < len(columns):
        kept &= nodes.level < max_depths.take(nodes.match)
    if columns.min() < 0:  # nothing follows the end of a text
        kept &= np.logical_and.accumulate(columns >= 0, axis=0).ravel().take(nodes.place)
    return kept.nonzero()[0]


def _parents(
    keys: np.ndarray,
    branches: np.ndarray,
    place: np.ndarray,
    owners: np.ndarray,
    number: np.ndarray,
    total: int,
) -> np.ndarray:
    """Numbers of the nodes' parents in their trees, int32 [n], -1 for none.

    keys: uint64 [n], of the nodes. branches: of all places. place, number: of the nodes. owners: uint64 [n], what a
    key has of its text. total: columns.
    """
    order = keys.argsort()
    # Behind the first level, minus the columns: the same column, a level up.
    above = branches.take(place - total, mode="clip") + owners
    at = order.take(keys.searchsorted(above, sorter=order), mode="clip")
    return np.where(place < total, -1, number.take(at)).astype(np.int32)
