"""What may follow a running text: token trees out of what followed earlier occurrences of its last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from genrec.knowledge.token_tree import TokenTrees

MAX_NODES = 64
MAX_DEPTH = 24
MAX_CONTEXT = 8
ROWS = 32  # continuations that a tree is read from; of more, an even sample
START, SHIFT = 1, 2  # codes: token t is t + 2; 0 is a place where a branch was cut out, 1 the start of a text
_MANY = 256  # occurrences, above which a discount is next to nothing


class Continuations(NamedTuple):
    """Matches, each the longest end of a text that a source holds, and what followed it there.

    texts: int64 [m], which text each match is of. sources: int64 [m], numbers of the sources, no two the same of a
    text. lengths: int64 [m], tokens matched. steps: int64 [m], every which occurrence was read. owners: int64 [c],
    which match each continuation is of. suffixes: bytes of `MAX_DEPTH` big-endian codes [c], in any order.
    """

    texts: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray
    steps: np.ndarray
    owners: np.ndarray
    suffixes: np.ndarray

    @classmethod
    def joined(cls, one: Continuations, other: Continuations) -> Continuations:
        """The matches of both."""
        behind = other._replace(owners=other.owners + one.texts.size)
        return cls(*map(np.concatenate, zip(one, behind, strict=True)))


class _Nodes(NamedTuple):
    """The nodes of the tries below all texts, level by level, so that parents come first: int64 [n] each.

    level: from 0. column: a node's first. size: columns that it spans, continuations that go through it.
    """

    level: np.ndarray
    column: np.ndarray
    size: np.ndarray

    def chosen(self, nodes: np.ndarray) -> _Nodes:
        return _Nodes(self.level.take(nodes), self.column.take(nodes), self.size.take(nodes))


def draft_trees(
    found: Continuations,
    max_depths: Sequence[int],
    *,
    weights: Sequence[float] = (1.0,),
    max_nodes: int = MAX_NODES,
    min_share: float = 0.0,
    discount: float = 0.0,
) -> TokenTrees:
    """The most frequent branches of what follows each text, as a tree for each, the best nodes first.

    A node of count c at depth d, below a match of count m, has the share c / m, the product of the conditional
    frequencies down its branch, times (c / (c + discount))^d, what those come to if each of its d tokens has `discount`
    continuations more than were seen. So long branches of few texts are not held to be certain. (Of a match of more
    than `ROWS` occurrences every `steps`th is read; a c above 256 is discounted as 256.) Of a text with several
    matches, a node's share is the mean over them (Jelinek and Mercer's interpolation, 1980), each weighted by its
    source's weight and the square of its length: longer matches tell more.

    max_depths: 1 to `MAX_DEPTH` for each text. weights: of the sources by their numbers, how much each is trusted.
    max_nodes: of a tree. min_share: nodes below it are left out.
    """
    texts, total = len(max_depths), found.suffixes.size
    if not total:
        return TokenTrees.empty(texts)
    # A column per continuation, those of a text in order: so a node of the trie is a run of neighbours that are the
    # same down to its level, whichever sources they are of.
    text = found.texts.take(found.owners)
    order = np.lexsort((found.suffixes, text))
    text, match = text.take(order), found.owners.take(order)
    codes = found.suffixes.take(order).view(f">u{found.suffixes.itemsize // MAX_DEPTH}").reshape(total, MAX_DEPTH)
    limits = np.array(max_depths)
    codes = codes[:, : limits.max()]
    limits = np.minimum(_levels(codes), limits.take(text))
    columns = codes.T.astype(np.int32, order="C")
    nodes = _nodes(columns, text)
    nodes = nodes.chosen((nodes.level < limits.take(nodes.column)).nonzero()[0])
    of = text.take(nodes.column)
    shares = _shares(found, match, nodes, of, np.array(weights), discount, texts)
    if min_share > 0:
        likely = (shares >= min_share).nonzero()[0]
        nodes, of, shares = nodes.chosen(likely), of.take(likely), shares.take(likely)
    # Best first within each text; among equals those nearer to the root, so that no node comes without its parent.
    best = np.lexsort((-shares, of))
    sizes = np.bincount(of, minlength=texts)
    if sizes.max() > max_nodes:
        begins = sizes.cumsum() - sizes
        among = np.arange(best.size) - begins.repeat(sizes) < max_nodes
        best, sizes = best[among], np.minimum(sizes, max_nodes)
    # A parent is the node a level up that spans the same column: the last one that begins there or before.
    number = np.empty(of.size, np.int64)
    number[best] = np.arange(best.size)
    place = nodes.level * total + nodes.column
    at, level = place.take(best), nodes.level.take(best)
    parents = number.take(place.searchsorted(at - total, "right") - 1)  # of the first level, whatever is there
    parents[level == 0] = -1
    tokens = columns.ravel().take(at) - np.int32(SHIFT)
    return TokenTrees(sizes, tokens, parents, shares.take(best).astype(np.float32), level + 1)


def _levels(codes: np.ndarray) -> np.ndarray:
    """Tokens of each continuation, codes [c, depth], up to the end of its text: int64 [c]."""
    ends = np.empty((codes.shape[0], codes.shape[1] + 1), bool)
    np.less(codes, SHIFT, out=ends[:, :-1])
    ends[:, -1] = True
    return ends.argmax(1)


def _nodes(columns: np.ndarray, text: np.ndarray) -> _Nodes:
    """Where a column first differs from the one before it, at this level or above, a node begins.

    columns: int32 [levels, c]; text: int64 [c], whose each is.
    """
    levels, total = columns.shape
    differs = columns[:, 1:] != columns[:, :-1]
    differs[0] |= text[1:] != text[:-1]  # texts share no nodes
    begins = np.empty((levels, total), bool)
    begins[:, 0] = True
    np.logical_or.accumulate(differs, axis=0, out=begins[:, 1:])
    place = begins.ravel().nonzero()[0]
    size = np.empty(place.size, np.int64)
    size[:-1] = place[1:] - place[:-1]  # a node ends where the next one begins, each level's last one with the level
    size[-1] = begins.size - place[-1]
    level = place // total
    return _Nodes(level, place - level * total, size)


def _shares(
    found: Continuations,
    match: np.ndarray,
    nodes: _Nodes,
    of: np.ndarray,
    weights: np.ndarray,
    discount: float,
    texts: int,
) -> np.ndarray:
    """Shares of nodes, float64 [n]: as of `draft_trees`; a child's is at most its parent's.

    match: int64 [c], of each column. of: int64 [n], whose each node is.
    """
    # Everything by source and text, one of them a row.
    cells, many = found.sources * texts + found.texts, weights.size * texts
    columns = np.bincount(cells.take(match), minlength=many)
    steps, trust = np.ones(many, np.int64), np.zeros(many)
    steps[cells], trust[cells] = found.steps, weights.take(found.sources) * found.lengths**2
    together = trust.reshape(-1, texts).sum(0)
    together[together == 0] = 1.0
    each = trust.reshape(-1, texts) / together / np.maximum(columns, 1).reshape(-1, texts)
    # How many columns of each source a node spans.
    until = np.zeros((weights.size, match.size + 1), np.int64)
    until[found.sources.take(match), np.arange(1, match.size + 1)] = 1
    until = until.cumsum(1)
    spans = until.take(nodes.column + nodes.size, axis=1) - until.take(nodes.column, axis=1)
    shares = each.take(of, axis=1) * spans
    if discount:
        seen = np.minimum(spans * steps.reshape(-1, texts).take(of, axis=1), _MANY)
        shares *= _discounts(discount).take(seen * MAX_DEPTH + nodes.level)
    return np.asarray(shares.sum(0))


@lru_cache
def _discounts(discount: float) -> np.ndarray:
    """(c / (c + discount))^d by c, 0 to 256, and d, 1 to `MAX_DEPTH`: float64 [257 * 24]."""
    counts = np.arange(_MANY + 1.0)[:, None]
    return ((counts / (counts + discount)) ** np.arange(1, MAX_DEPTH + 1)).ravel()
