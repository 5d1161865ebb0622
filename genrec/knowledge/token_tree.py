"""Drafted token trees: what may follow a running text, or each of several."""

from __future__ import annotations

from collections.abc import Sequence
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


class TokenTrees(NamedTuple):
    """The token trees of several texts behind one another.

    sizes: int64 [texts], nodes of each tree. All others are of the nodes, [n], as in `TokenTree`, but parents: int64,
    places in these arrays, -1 for a child of a text's last token. depths: int64, from 1.
    """

    sizes: np.ndarray
    tokens: np.ndarray
    parents: np.ndarray
    shares: np.ndarray
    depths: np.ndarray

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> TokenTrees:
        """`trees`, at least one."""
        sizes = np.array([tree.size for tree in trees])
        tokens, parents, shares = map(np.concatenate, zip(*trees, strict=True))
        places = np.where(parents < 0, -1, parents + (sizes.cumsum() - sizes).repeat(sizes))
        # Ancestors are reached 1, 2, 4, ... levels away; the last place stands for what is above all.
        above, depths = np.append(np.where(places < 0, tokens.size, places), tokens.size), np.ones(tokens.size + 1, int)
        depths[-1] = 0
        while (above < tokens.size).any():
            depths += depths.take(above)
            above = above.take(above)
        return cls(sizes, tokens, places, shares, depths[:-1])

    @classmethod
    def empty(cls, texts: int) -> TokenTrees:
        """No nodes for any of `texts` texts."""
        none = np.empty(0, np.int64)
        return cls(np.zeros(texts, np.int64), none.astype(np.int32), none, none.astype(np.float32), none)

    @property
    def owner(self) -> np.ndarray:
        """Of each node, which text: int64 [n]."""
        return np.arange(self.sizes.size).repeat(self.sizes)

    def chosen(self, nodes: np.ndarray) -> TokenTrees:
        """What is left with `nodes` alone, int64 [k], ascending, none without its parent."""
        number = np.empty(self.tokens.size + 1, np.int64)
        number[nodes], number[-1] = np.arange(nodes.size), -1  # parents of -1 read the last
        return TokenTrees(
            np.bincount(self.owner.take(nodes), minlength=self.sizes.size),
            self.tokens.take(nodes),
            number[self.parents.take(nodes)],
            self.shares.take(nodes),
            self.depths.take(nodes),
        )

    def split(self) -> list[TokenTree]:
        """The tree of each text."""
        ends = self.sizes.cumsum()
        parents = np.where(self.parents < 0, -1, self.parents - (ends - self.sizes).repeat(self.sizes)).astype(np.int32)
        return [
            TokenTree(self.tokens[begin:end], parents[begin:end], self.shares[begin:end])
            for begin, end in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True)
        ]
