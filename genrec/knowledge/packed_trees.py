"""The token trees of several texts behind one another, as one forward pass verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec.knowledge.token_tree import TokenTrees


@dataclass(frozen=True)
class PackedTrees:
    """Trees of T texts with S nodes, each with its text's last token as its root; W is the size of the largest.

    sizes: int64 [T], nodes with root. roots: int64 [T], places of the roots. All others int64 [S]: tokens; owner: which
    text; node: number within its tree, 0 for the root; parents: place of the parent in these arrays, a root's its own;
    depths: 0 for roots.
    """

    sizes: np.ndarray
    roots: np.ndarray
    tokens: np.ndarray
    owner: np.ndarray
    node: np.ndarray
    parents: np.ndarray
    depths: np.ndarray

    @classmethod
    def of(cls, trees: TokenTrees, last: np.ndarray) -> PackedTrees:
        """Trees of texts whose last tokens are `last`, int [T]."""
        sizes = trees.sizes + 1
        if not trees.tokens.size:
            places, zeros = np.arange(sizes.size), np.zeros(sizes.size, np.int64)
            return cls(sizes, places, last.astype(np.int64), places, zeros, places, zeros)
        roots = sizes.cumsum() - sizes
        owner = np.arange(sizes.size).repeat(sizes)
        above = roots.take(owner)
        node = np.arange(owner.size) - above
        of = trees.owner
        drafted = np.arange(of.size) + (of + 1)  # behind their text's root and those before
        tokens, depths = np.empty(owner.size, np.int64), np.zeros(owner.size, np.int64)
        tokens[roots], tokens[drafted], depths[drafted] = last, trees.tokens, trees.depths
        above[drafted] = np.where(trees.parents < 0, above.take(drafted), trees.parents + (of + 1))
        return cls(sizes, roots, tokens, owner, node, above, depths)

    @property
    def width(self) -> int:
        """W"""
        return int(self.sizes.max())

    @cached_property
    def _ladder(self) -> list[np.ndarray]:
        """Places of the nodes 1, 2, 4, ... levels above each, the root's at most, int64 [S] each, up to all roots."""
        ladder, deepest = [self.parents], int(self.depths.max())
        while 1 << len(ladder) <= deepest:
            ladder.append(ladder[-1].take(ladder[-1]))
        return ladder

    @cached_property
    def branches(self) -> np.ndarray:
        """Which nodes are on the way from the root to each, itself included: bool [S, W]."""
        words = np.zeros((self.tokens.size, (self.width + 63) // 64), np.uint64)
        bits = np.uint64(1) << (self.node & 63).astype(np.uint64)
        words[np.arange(self.tokens.size), self.node >> 6] = bits
        for above in self._ladder:
            words |= words.take(above, axis=0)
        found = np.unpackbits(words.view(np.uint8), axis=1, count=self.width, bitorder="little")
        return found.view(bool)

    def reached(self, accepted: np.ndarray) -> np.ndarray:
        """Which nodes are accepted with all above them: bool [S], as `accepted`, which is True for roots."""
        for above in self._ladder:
            accepted = accepted & accepted.take(above)
        return accepted

    def longest(self, accepted: np.ndarray, probability: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The longest branch whose tokens are all accepted, per text; among equals the most probable.

        accepted: bool [S], True for roots. probability: float64 [S], log-probability behind the parent, 0 for roots;
        None if no text has two such branches of one length. Gives the places of the branches' nodes, int64 [P], root
        first, text by text; and how many are each text's, int64 [T].
        """
        texts = self.sizes.size
        if self.width == 1:
            return np.arange(texts), np.ones(texts, np.int64)
        length = np.where(self.reached(accepted), self.depths, -1)
        most = np.maximum.reduceat(length, self.roots)
        ends = (length == most.take(self.owner)).nonzero()[0]
        if ends.size > texts and probability is not None:
            for above in self._ladder:  # a root adds nothing, however often it is met
                probability = probability + probability.take(above)
            ends = ends[np.lexsort((-probability.take(ends), self.owner.take(ends)))]
        owner = self.owner.take(ends)
        ends = ends.take(owner.searchsorted(np.arange(texts)))
        # Parents precede their children, so that a branch is in the order of its nodes.
        of, node = self.branches.take(ends, axis=0).nonzero()
        return self.roots.take(of) + node, most + 1
