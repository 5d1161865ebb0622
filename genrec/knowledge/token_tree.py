"""A drafted token tree: what may follow the running text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class TokenTree(NamedTuple):
    """Drafted continuations that share prefixes. Parents precede their children.

    tokens: int32 [n]. parents: int32 [n], -1 for a child of the last token of the running text. shares: float32 [n],
    how probable the drafter holds the branch down to each node to be, in (0, 1]; a child's is at most its parent's.
    """

    tokens: np.ndarray
    parents: np.ndarray
    shares: np.ndarray

    @property
    def size(self) -> int:
        """Nodes, n."""
        return self.tokens.size

    @property
    def depths(self) -> np.ndarray:
        """Tokens on the way from the running text to each node, that node included: int32 [n], from 1."""
        depths = np.zeros(self.size, np.int32)
        above = self.parents
        while (inside := above >= 0).any():  # once per level of the tree
            depths += inside
            above = np.where(inside, self.parents[above], -1)
        return depths + 1

    def best_branch(self) -> np.ndarray:
        """Tokens of the branch with the largest sum of shares: of which most tokens are expected to hold. int32 [m]."""
        expected = self.shares.astype(np.float64)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                expected[node] += expected[parent]
        nodes, node = [], int(expected.argmax()) if self.size else -1
        while node >= 0:
            nodes.append(node)
            node = int(self.parents[node])
        return self.tokens[nodes[::-1]]

    @classmethod
    def chain(cls, tokens: np.ndarray) -> TokenTree:
        """A tree of one branch, int [n], held to be certain."""
        size = len(tokens)
        return cls(np.asarray(tokens, np.int32), np.arange(-1, size - 1, dtype=np.int32), np.ones(size, np.float32))


EMPTY = TokenTree.chain(np.empty(0, np.int32))
