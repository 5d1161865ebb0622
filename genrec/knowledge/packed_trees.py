"""The token trees of several texts behind one another, as one forward pass verifies them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec.knowledge.token_tree import TokenTree


@dataclass(frozen=True)
class PackedTrees:
    """Trees of T texts with S nodes, each with its text's last token as its root; W is the size of the largest.

    sizes: int64 [T], nodes with root. All others int64 [S]: tokens; owner: which text; node: number within its tree,
    0 for the root; parents: place of the parent in these arrays, a root's its own.
    """

    sizes: np.ndarray
    tokens: np.ndarray
    owner: np.ndarray
    node: np.ndarray
    parents: np.ndarray

    @classmethod
    def of(cls, trees: list[TokenTree], last: np.ndarray) -> PackedTrees:
        """Trees of texts whose last tokens are `last`, int [T]."""
        sizes = np.array([tree.size for tree in trees]) + 1
        if sizes.max() == 1:
            places = np.arange(sizes.size)
            return cls(sizes, last.astype(np.int64), places, np.zeros_like(places), places)
        roots = np.cumsum(sizes) - sizes
        owner = np.repeat(np.arange(sizes.size), sizes)
        node = np.arange(owner.size) - roots[owner]
        tokens, parents = np.empty(owner.size, np.int64), roots[owner]
        tokens[roots] = last
        drafted = node > 0
        tokens[drafted] = np.concatenate([tree.tokens for tree in trees])
        parents[drafted] += np.concatenate([tree.parents for tree in trees]) + 1
        return cls(sizes, tokens, owner, node, parents)

    @property
    def roots(self) -> np.ndarray:
        """bool [S]"""
        return self.node == 0

    @property
    def width(self) -> int:
        """W"""
        return int(self.sizes.max())

    @cached_property
    def branches(self) -> np.ndarray:
        """Which nodes are on the way from the root to each, itself included: float32 [T, W, W], 1 or 0.

        Rows behind a tree's last node hold only the node itself.
        """
        width = self.width
        if width == 1:
            return np.ones((self.sizes.size, 1, 1), np.float32)
        above = np.zeros((self.sizes.size, width, width), np.float32)
        above[self.owner, self.node, self.node[self.parents]] = 1.0
        above[:, np.arange(width), np.arange(width)] = 1.0
        reach = 1
        while reach < width - 1 and not np.array_equal(further := np.minimum(above @ above, 1.0), above):
            above, reach = further, 2 * reach  # steps towards the root that it sees
        return above

    @cached_property
    def depths(self) -> np.ndarray:
        """Of each node, 0 for roots: int64 [S]."""
        return self.branches.sum(-1)[self.owner, self.node].astype(np.int64) - 1

    def longest(self, accepted: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The longest branch whose tokens are all accepted, per text; among equals the most probable.

        accepted: bool [S]. probability: float64 [S], log-probability behind the parent. Gives the places of the
        branches' nodes, int64 [P], root first, text by text; and how many are each text's, int64 [T].
        """
        texts, width = self.sizes.size, self.width
        if width == 1:
            return np.arange(texts), np.ones(texts, np.int64)
        refused, joint = np.ones((texts, width)), np.zeros((texts, width))
        refused[self.owner, self.node] = ~accepted
        joint[self.owner, self.node] = probability
        whole = self._along(refused) == 0
        length = np.where(whole, self.branches.sum(-1), 0)
        most = length.max(-1, keepdims=True)
        ends = np.where(length == most, self._along(joint), -np.inf).argmax(-1)
        # Parents precede their children, so that a branch is in the order of its nodes.
        of, node = np.nonzero(self.branches[np.arange(texts), ends])
        return (np.cumsum(self.sizes) - self.sizes)[of] + node, most[:, 0].astype(np.int64)

    def _along(self, values: np.ndarray) -> np.ndarray:
        """Sums of `values`, [T, W], over the branch to each node."""
        return (self.branches @ values[:, :, None])[:, :, 0]
