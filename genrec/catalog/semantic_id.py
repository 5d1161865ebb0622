"""The space of semantic IDs: levels, codes per level, and the one-integer form of a tuple."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec.errors import shown

_MAX_CODES = 2**62


@dataclass(frozen=True)
class SemanticIdSpace:
    """All semantic IDs of `L = len(levels)` codes, code `l` in `[0, levels[l])`.

    A semantic ID travels as one integer in mixed radix, `code = sum_l c_l * prod_{j<l} T_j`
    (NEZHA, arXiv 2511.18793), so level 0 is the least significant digit.
    """

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(int(size) for size in self.levels))
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels must hold one or more sizes of at least 1, got {shown(self.levels)}")
        if self.size > _MAX_CODES:
            raise ValueError(
                f"levels {shown(self.levels)} span {shown(self.size)} codes, more than the {_MAX_CODES} of int64"
            )

    @property
    def depth(self) -> int:
        """Number of levels, L."""
        return len(self.levels)

    @property
    def size(self) -> int:
        """Number of tuples in the space."""
        return math.prod(self.levels)

    def beams(self, beam_width: int) -> int:
        """Beams that a beam search of `beam_width` ends with: no more than the space has tuples."""
        return min(beam_width, self.size)

    @cached_property
    def radix(self) -> np.ndarray:
        """int64 [L]: the weight of each level in the mixed-radix code."""
        return np.cumprod([1, *self.levels[:-1]], dtype=np.int64)

    def encode(self, sids: np.ndarray) -> np.ndarray:
        """Codes of semantic IDs: integers [..., L] -> int64 [...]. Raises ValueError outside the space."""
        sids = np.asarray(sids)
        if sids.shape[-1:] != (self.depth,):
            raise ValueError(f"semantic IDs must have {self.depth} codes in the last axis, got shape {sids.shape}")
        outside = (sids < 0) | (sids >= np.asarray(self.levels))
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"semantic ID code {int(sids[at])} at {at} is outside [0, {self.levels[at[-1]]}) of level {at[-1]}"
            )
        return sids.astype(np.int64) @ self.radix

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The inverse of `encode`: int64 [...] -> int32 [..., L]."""
        codes = np.asarray(codes, dtype=np.int64)
        return (codes[..., None] // self.radix % np.asarray(self.levels)).astype(np.int32)


def code_dtype(space: SemanticIdSpace) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """The smallest type that codes of `space` are kept in."""
    return np.uint32 if space.size <= 2**32 else np.int64


def checked_codes(space: SemanticIdSpace, codes: np.ndarray) -> np.ndarray:
    """`codes`, integers of any shape, as int64. Raises ValueError for one outside the space."""
    codes = np.asarray(codes, np.int64)
    if codes.size and not 0 <= (least := int(codes.min())) <= (most := int(codes.max())) < space.size:
        wrong = least if least < 0 else most
        raise ValueError(f"code {wrong} is outside the space of levels {space.levels}, 0 to {space.size - 1}")
    return codes
