"""What a forward pass over the tokens of many texts, packed without padding, reads and writes: cache and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from genrec.knowledge.packed_trees import PackedTrees

_ROUND = 64  # the cache grows in steps of so many tokens
_SEEN, _HIDDEN = np.float32(0), np.float32(-np.inf)
_BLOCK = 8  # texts that attend together: of fewer, less is padded; of more, there are fewer calls


@dataclass(frozen=True)
class Block:
    """Packed tokens of `texts` texts, neighbouring rows of the cache from `row` on, that attend together.

    tokens: which of the packed ones. width: most tokens of a text. keys: cached positions that are read. padded: int64
    [tokens], text * width + number of the token within its text's; None if that is 0, 1, 2 and so on. mask: float
    [texts, 1, width, keys], 0 where a token attends and -inf elsewhere; None for plain causal attention, where keys =
    width.
    """

    tokens: slice
    row: int
    texts: int
    width: int
    keys: int
    padded: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True)
class Packing:
    """Which text each of the S packed tokens belongs to, and what it sees.

    tokens, positions: int64 [S]. cache_rows: int64 [S], where their keys and values go: row * capacity + place.
    """

    tokens: Tensor
    positions: Tensor
    cache_rows: Tensor
    blocks: Sequence[Block]

    @classmethod
    def of_prompts(cls, prompts: Sequence[np.ndarray], row: int, cache: PackedCache) -> Packing:
        """Whole prompts, int [p] each, of texts in rows from `row` on."""
        sizes = np.array([prompt.size for prompt in prompts])
        ends = np.cumsum(sizes)
        owner = np.repeat(np.arange(sizes.size), sizes)
        place = np.arange(owner.size) - (ends - sizes)[owner]
        blocks = []
        for first in range(0, sizes.size, _BLOCK):
            some = sizes[first : first + _BLOCK]
            tokens = slice(int(ends[first] - some[0]), int(ends[first + some.size - 1]))
            width = int(some.max())
            padded = _padded(owner[tokens] - first, place[tokens], some.size, width, cache)
            blocks.append(Block(tokens, row + first, some.size, width, width, padded, None))
        rows = (row + owner) * cache.capacity + place
        return cls(cache.tensor(np.concatenate(prompts)), cache.tensor(place), cache.tensor(rows), blocks)

    @classmethod
    def of_trees(cls, packed: PackedTrees, cached: np.ndarray, cache: PackedCache) -> Packing:
        """Trees of the texts in the first rows: every token sees the `cached` ones, int [T], and its own branch."""
        texts, width, sizes = cached.size, packed.width, packed.sizes.tolist()
        cached_of = cached.take(packed.owner)
        keys = np.arange(int(cached.max()) + width)
        if width == 1:
            see = np.where(keys > cached[:, None], _HIDDEN, _SEEN)[:, None]
        else:
            # Padded to the width; what is behind a tree's last node only has to see something.
            see = np.zeros((texts * width, keys.size), np.float32)
            place = packed.owner * width + packed.node
            see[place] = np.where(keys >= cached[:, None], _HIDDEN, _SEEN).take(packed.owner, axis=0)
            token, node = packed.branches.nonzero()
            see.ravel()[(place * keys.size + cached_of).take(token) + node] = 0.0
            see = see.reshape(texts, width, keys.size)
        positions = cached_of + packed.depths
        rows = packed.owner * cache.capacity + cached_of + packed.node
        seen = torch.from_numpy(see)[:, None].to(cache.device, cache.dtype)
        ends = (cached + packed.sizes).tolist()
        blocks, end = [], 0
        for first in range(0, texts, _BLOCK):
            some = slice(first, first + _BLOCK)
            tokens = slice(end, end := end + sum(sizes[some]))
            wide, most, count = max(sizes[some]), max(ends[some]), len(sizes[some])
            padded = None
            if tokens.stop - tokens.start < count * wide:
                padded = cache.tensor((packed.owner[tokens] - first) * wide + packed.node[tokens])
            blocks.append(Block(tokens, first, count, wide, most, padded, seen[some, :, :wide, :most]))
        return cls(cache.tensor(packed.tokens), cache.tensor(positions), cache.tensor(rows), blocks)


def _padded(owner: np.ndarray, place: np.ndarray, texts: int, width: int, cache: PackedCache) -> Tensor | None:
    return None if owner.size == texts * width else cache.tensor(owner * width + place)


class PackedCache:
    """Keys and values of all layers and texts in one preallocated tensor, written in place.

    layers, heads, size: of the model, heads those of keys and values. rows: texts at once. `reserve` sets how many
    tokens a text may have.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.capacity, self.dtype, self.device = 0, dtype, device
        self._shape = (layers, 2, rows, heads, size)
        self._states = self._allocate(0)  # [layers, keys and values, rows, capacity, heads, size]

    def reserve(self, length: int) -> None:
        """Make room for texts of `length` tokens."""
        if length <= self.capacity:
            return
        # In proportion, so that a cache is copied a few times only, however long its texts get.
        capacity = -(-max(length, self.capacity * 5 // 4) // _ROUND) * _ROUND
        old, self._states = self._states, self._allocate(capacity)
        self._states[:, :, :, : self.capacity] = old
        self.capacity = capacity

    def write(self, layer: int, packing: Packing, keys: Tensor, values: Tensor) -> None:
        """Store keys and values of packed tokens, [S, heads, size]."""
        for states, new in zip(self._states[layer], (keys, values), strict=True):
            states.flatten(0, 1).index_copy_(0, packing.cache_rows, new.to(self.dtype))

    def attend(self, layer: int, packing: Packing, queries: Tensor, scaling: float) -> Tensor:
        """Attention of packed queries, [S, heads, size], to their own texts only: [S, heads * size].

        Only here are tokens padded, to the widest text of a block: all else in a layer works token by token.
        """
        keys, values = self._states[layer]
        attended = [
            _attend(block, queries[block.tokens], keys, values, scaling, self.dtype) for block in packing.blocks
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy cached tokens, int64 [n] as in `Packing.cache_rows`, in all layers; reads all before it writes any."""
        tokens = self._states.flatten(2, 3)
        tokens.index_copy_(2, target, tokens.index_select(2, source))

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the text of `length` tokens in row `source` to row `target`."""
        self._states[:, :, target, :length] = self._states[:, :, source, :length]

    def tensor(self, array: np.ndarray) -> Tensor:
        """`array` as int64, where the cache is."""
        return torch.from_numpy(array.astype(np.int64, copy=False)).to(self.device)

    def _allocate(self, capacity: int) -> Tensor:
        # Zeros, because what is masked is still multiplied, and might be NaN. By numpy, which takes memory in pages of
        # 2 MB where Linux lets it, and none for what is not used yet.
        layers, two, rows, heads, size = self._shape
        shape = layers, two, rows, capacity, heads, size
        if capacity and torch.device(self.device).type == "cpu":
            memory = torch.from_numpy(np.zeros(prod(shape) * self.dtype.itemsize, np.uint8))
            return memory.view(self.dtype).view(shape)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


def _attend(block: Block, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """Attention of a block's queries; keys, values: [rows, capacity, heads, size] of the cache."""
    _, heads, size = queries.shape
    rows = slice(block.row, block.row + block.texts)
    padded = queries.to(dtype)
    if block.padded is not None:
        padded = padded.new_zeros((block.texts * block.width, heads, size)).index_copy_(0, block.padded, padded)
    attended = scaled_dot_product_attention(
        padded.view(block.texts, block.width, heads, size).transpose(1, 2),
        keys[rows, : block.keys].transpose(1, 2),
        values[rows, : block.keys].transpose(1, 2),
        attn_mask=block.mask,
        is_causal=block.mask is None,
        scale=scaling,
        enable_gqa=heads != keys.shape[2],
    )
    flat = attended.transpose(1, 2).reshape(-1, heads * size)
    return (flat if block.padded is None else flat.index_select(0, block.padded)).to(queries.dtype)
