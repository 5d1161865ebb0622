"""Which codes may follow a drafted prefix: one bit set per existing prefix, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.semantic_id import SemanticIdSpace


@dataclass(frozen=True)
class PrefixTrie:
    """Valid prefixes of a catalogue, as arrays that a graph can gather from.

    A node at level l is an existing prefix of l codes; level 0 has one, the empty prefix.
    bits: per level, uint8 [nodes_l, ceil(T_l / 8)]; bit `c % 8` of byte `c // 8` says that code c may follow.
    first_child: per level but the last, int32 [nodes_l]; the children of a node are consecutive nodes of the next
        level, in order of their code, so child(node, c) = first_child[node] + number of set bits below c.
    """

    bits: tuple[np.ndarray, ...]
    first_child: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, space: SemanticIdSpace, sids: np.ndarray) -> PrefixTrie:
        """Trie of semantic IDs: int32 [n, L], in any order, repeats allowed."""
        # Big-endian codes: level 0 is the most significant digit, so that sorting groups equal prefixes.
        place = np.cumprod([1, *space.levels[:0:-1]], dtype=np.int64)[::-1]
        prefixes = [np.unique(np.asarray(sids, np.int64) @ place)]
        for size in space.levels[:0:-1]:
            prefixes.insert(0, np.unique(prefixes[0] // size))
        # prefixes[l]: the existing prefixes of l + 1 codes, ascending.
        bits, first_child = [], []
        parents = np.zeros(1, np.int64)
        for level, size in enumerate(space.levels):
            children = prefixes[level]
            parent = np.searchsorted(parents, children // size)
            code = children % size
            rows = np.zeros((parents.size, -(-size // 8)), np.uint8)
            np.bitwise_or.at(rows, (parent, code // 8), np.uint8(1) << (code % 8).astype(np.uint8))
            bits.append(rows)
            if level + 1 < space.depth:
                first_child.append(np.searchsorted(parent, np.arange(parents.size)).astype(np.int32))
            parents = children
        return cls(tuple(bits), tuple(first_child))

    def unrestricted(self) -> PrefixTrie:
        """A trie of the same levels that allows every tuple, for drafting without masks: one node per level.

        Its nodes repeat: `first_child` is 0 and a reader clips child numbers to the nodes that exist.
        """
        bits = tuple(np.full_like(rows[:1], 0xFF) for rows in self.bits)
        return PrefixTrie(bits, tuple(np.zeros(1, np.int32) for _ in self.first_child))

    def save(self, folder: Path) -> None:
        """Write the trie's arrays into `folder`."""
        for level, bits in enumerate(self.bits):
            save_array(folder / f"bits_{level}.npy", bits)
        for level, children in enumerate(self.first_child):
            save_array(folder / f"first_child_{level}.npy", children)

    @classmethod
    def load(cls, folder: Path, space: SemanticIdSpace) -> PrefixTrie:
        """Map the trie in `folder`. Raises ValueError that names the file at fault."""
        bits = tuple(
            load_array(folder / f"bits_{level}.npy", np.uint8, (None, -(-size // 8)))
            for level, size in enumerate(space.levels)
        )
        first_child = tuple(
            load_array(folder / f"first_child_{level}.npy", np.int32, (len(bits[level]),))
            for level in range(space.depth - 1)
        )
        return cls(bits, first_child)
