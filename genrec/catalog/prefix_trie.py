"""The masks of bundles of format 2, as their graphs take them. New ones are a `PrefixTable`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrec.arrays import load_array
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

    def unrestricted(self) -> PrefixTrie:
        """A trie of the same levels that allows every tuple, for drafting without masks: one node per level.

        Its nodes repeat: `first_child` is 0 and a reader clips child numbers to the nodes that exist.
        """
        bits = tuple(np.full_like(rows[:1], 0xFF) for rows in self.bits)
        return PrefixTrie(bits, tuple(np.zeros(1, np.int32) for _ in self.first_child))

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
