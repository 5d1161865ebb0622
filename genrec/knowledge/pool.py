"""The retrieval pool: texts written before, as a trie that is searched by the end of the running text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrec.arrays import load_archive
from genrec.knowledge.continuations import (
    MAX_CONTEXT,
    MAX_DEPTH,
    MAX_NODES,
    SHIFT,
    START,
    draft_trees,
)
from genrec.knowledge.pool_search import continuations, longest, needles
from genrec.knowledge.token_tree import TokenTree

_FORMAT = 2  # before, suffixes of four-byte codes were in order up to 24 of them
_CUT = 0
_LARGEST_VOCABULARY = (1 << 21) - SHIFT - 1  # three codes to a 64-bit sort key
_SORTED = MAX_CONTEXT + MAX_DEPTH  # suffixes are in order up to so many tokens
_STRIDE = 16  # suffixes per search key
_SMALL = 1 << 13  # tokens that are sorted in a few ms: a segment below that is not worth keeping apart
_GROWTH = 16
_BRANCH = 4  # tokens of the n-grams whose frequency decides what is evicted
_WINDOW = np.arange(_STRIDE + 1)  # suffixes from one search key to the next


class RetrievalPool:
    """A trie over the suffixes of all texts, with frequencies, held as sorted suffixes instead of nodes.

    In lexicographic order the suffixes that begin with the same tokens, a node of the trie, are neighbours, and their
    number is the node's frequency. So a suffix array is the whole trie in 4 bytes per token, where nodes would take a
    hash table entry per distinct n-gram of each of 20 orders; and growth is a sort, which numpy does well, not an
    insertion per position and level.

    - The longest end of the running text, up to `MAX_CONTEXT` tokens, that a text holds is found by binary search
      in the search keys (first tokens of every 16th suffix), then by counting among the 16 in between: for all lengths
      and all running texts at once.
    - The token trees fall out of comparing neighbours among the suffixes found, also of all running texts at once. Of
      more than 64 an even sample is read; a branch's count is then off by less than one step of the sample.
    - New texts are sorted into a segment of their own. Segments are merged, by sorting them together, once the younger
      is more than a sixteenth of the older: at most four at any size that fits in memory.
    - Above `max_tokens` the rare branches go: stretches of text whose n-grams (of 4) occur least often, in powers
      of two, older ones first among equals, until half of the tokens are left. Frequent branches keep their counts.

    vocabulary_size: tokens are 0 to vocabulary_size - 1. max_tokens: most tokens to hold, with a
    marker per text.
    """

    def __init__(self, vocabulary_size: int, max_tokens: int = 1 << 27) -> None:
        if not 1 <= vocabulary_size <= _LARGEST_VOCABULARY:
            raise ValueError(f"vocabulary_size is {vocabulary_size}; it must be 1 to {_LARGEST_VOCABULARY}")
        if not 2 <= max_tokens < 1 << 31:
            raise ValueError(f"max_tokens is {max_tokens}; it must be 2 to {(1 << 31) - 1}")
        self.vocabulary_size, self.max_tokens = vocabulary_size, max_tokens
        # Big-endian, so that bytes compare as token sequences do; numpy must be told to keep that when it joins arrays.
        self.dtype = np.dtype(">u2" if vocabulary_size + SHIFT < 1 << 16 else ">u4")
        self.segments: list[Segment] = []

    @property
    def tokens(self) -> int:
        """Tokens held, markers between texts included."""
        return sum(segment.order.size for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """Memory of the pool's arrays."""
        return sum(array.nbytes for segment in self.segments for array in (segment.codes, segment.order, segment.keys))

    def texts(self) -> list[np.ndarray]:
        """What was added, int32 [n] each, oldest first, as far as it was not evicted."""
        if not self.segments:
            return []
        codes = np.concatenate([segment.text for segment in self.segments]).astype(np.int32)
        return [part[1:] - SHIFT for part in np.split(codes, (codes < SHIFT).nonzero()[0]) if part.size > 1]

    def add(self, texts: Sequence[np.ndarray]) -> None:
        """Add `texts`, int [any length] each; empty ones are left out.

        Raises ValueError for a token outside the vocabulary; nothing is added then.
        """
        parts = [part for part in map(np.asarray, texts) if part.size]
        if not parts:
            return
        flat = np.concatenate(parts)
        outside = np.flatnonzero((flat < 0) | (flat >= self.vocabulary_size))
        if outside.size:
            raise ValueError(
                f"token {flat[outside[0]]} is outside the pool's vocabulary, 0 to {self.vocabulary_size - 1}; "
                "use the tokenizer that the pool was made for"
            )
        lengths = np.array([part.size for part in parts])
        codes = np.full(flat.size + lengths.size, START, self.dtype)
        codes[np.arange(flat.size) + np.repeat(np.arange(1, lengths.size + 1), lengths)] = flat + SHIFT
        while self.segments and self.segments[-1].order.size < max(_SMALL, _GROWTH * codes.size):
            codes = np.concatenate([self.segments.pop().text, codes], dtype=self.dtype)
        self.segments.append(Segment.sort(codes))
        if self.tokens > self.max_tokens:
            self._evict()

    def draft(
        self,
        text: np.ndarray,
        *,
        max_nodes: int = MAX_NODES,
        max_depth: int = MAX_DEPTH,
        min_share: float = 0.0,
        discount: float = 0.0,
    ) -> TokenTree:
        """What followed the longest end of `text` that the pool's texts hold: the most frequent branches as a tree.

        text: int [n], the running text from its first token on; empty to draft how texts begin. max_nodes: 1 to 64.
        max_depth: 1 to 24. All else as of `draft_trees`.
        """
        if not 1 <= max_nodes <= MAX_NODES:
            raise ValueError(f"max_nodes is {max_nodes}; it must be 1 to {MAX_NODES}")
        if not 1 <= max_depth <= MAX_DEPTH:
            raise ValueError(f"max_depth is {max_depth}; it must be 1 to {MAX_DEPTH}")
        found = continuations([self], [text], np.zeros(1, np.int64))
        trees = draft_trees(found, [max_depth], max_nodes=max_nodes, min_share=min_share, discount=discount)
        return trees.split()[0]

    def count(self, tokens: np.ndarray) -> int:
        """How often `tokens`, int [1 to 8], stand in the pool's texts."""
        if not 1 <= len(tokens) <= MAX_CONTEXT:
            raise ValueError(f"{len(tokens)} tokens were given; 1 to {MAX_CONTEXT} can be counted")
        asked = needles([np.asarray(tokens)], self.dtype)[:, :, : len(tokens)]
        length, ranges = longest([self], asked)
        return int((ranges.last - ranges.first).sum()) if length[0] == len(tokens) else 0

    def save(self, path: Path) -> None:
        """Write the pool to `path` (`.npz`), which then holds either the old or the new pool, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        header = np.array([_FORMAT, self.vocabulary_size, self.max_tokens, len(self.segments)], np.int64)
        arrays = {f"text_{number}": segment.text for number, segment in enumerate(self.segments)}
        arrays |= {f"order_{number}": segment.order for number, segment in enumerate(self.segments)}
        with partial.open("wb") as file:
            np.savez(file, header=header, **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> RetrievalPool:
        """The pool in `path`. Raises ValueError that names the file and what is wrong with it."""
        arrays = load_archive(path, "retrieval pool")
        header = arrays.get("header")
        if header is None or header.dtype != np.int64 or header.shape != (4,):
            raise ValueError(f"{path}: is not a retrieval pool: it has no valid header")
        if not 1 <= header[0] <= _FORMAT:
            raise ValueError(f"{path}: has pool format {header[0]}, this version reads {_FORMAT}; build the pool again")
        try:
            pool = cls(int(header[1]), int(header[2]))
            for number in range(int(header[3])):
                text, order = arrays[f"text_{number}"], arrays[f"order_{number}"]
                segment = Segment.checked(text, order, pool.dtype, pool.vocabulary_size)
                pool.segments.append(Segment.sort(text) if header[0] == 1 and text.itemsize == 4 else segment)
        except KeyError as error:
            raise ValueError(f"{path}: lacks the array {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return pool

    def _evict(self) -> None:
        """Cut out the rarest branches: half of `max_tokens` is left."""
        codes = np.concatenate([segment.text for segment in self.segments], dtype=self.dtype)
        self.segments = []
        segment = Segment.sort(codes)
        size = codes.size
        # Frequency of the n-gram at each position: the run of equal neighbours among the sorted suffixes.
        differs = np.zeros(size, bool)
        differs[0] = True
        broken = np.zeros(size, bool)
        for offset in range(_BRANCH):
            column = segment.codes[segment.order + offset]
            differs[1:] |= column[1:] != column[:-1]
            if offset:
                broken |= column < SHIFT
        starts = np.flatnonzero(differs)
        counts = np.diff(np.append(starts, size))[np.cumsum(differs) - 1]
        support = np.zeros(size, np.int64)
        # In powers of two: by exact counts a phrase's ends would go from all its texts, not the phrase from some.
        support[segment.order] = np.where(broken, 0, np.frexp(counts)[1])
        # A token is as frequent as the most frequent n-gram that it is part of.
        frequency = support.copy()
        for offset in range(1, _BRANCH):
            np.maximum(frequency[offset:], support[:-offset], out=frequency[offset:])
        frequency[codes < SHIFT] = -1
        # With a marker before each stretch that is left, twice as many tokens could be held; order: rare, then old.
        ranked = np.argsort(frequency, kind="stable")
        kept = np.zeros(size, bool)
        kept[ranked[size - min(self.max_tokens // 2, int((codes >= SHIFT).sum())) :]] = True
        stays = np.flatnonzero(kept)
        begins = ~kept[stays - 1]  # a text's first token follows a marker, so stays is never 0
        place = np.arange(stays.size) + np.cumsum(begins)
        left = np.empty(stays.size + int(begins.sum()), self.dtype)
        left[place] = codes[stays]
        left[place[begins] - 1] = np.where(codes[stays[begins] - 1] == START, START, _CUT)
        self.segments.append(Segment.sort(left))


class Segment:
    """Texts with their suffixes in order.

    text: codes [n], a marker before each text. codes: the same with zeros behind, so that windows need no care at the
    end. order: int32 [n], where suffixes begin, sorted by their first `_SORTED` codes. keys: bytes [n / 16], the first
    `MAX_CONTEXT` codes of every 16th suffix.
    """

    def __init__(self, text: np.ndarray, order: np.ndarray) -> None:
        self.codes = np.zeros(text.size + _SORTED, text.dtype)
        self.codes[: text.size] = text
        self.text = self.codes[: text.size]
        self.order = order
        self._contexts, self._branches = self._stretches(MAX_CONTEXT), self._stretches(MAX_DEPTH)
        self.keys = self._contexts[order[::_STRIDE]]

    @classmethod
    def sort(cls, text: np.ndarray) -> Segment:
        """Segment of `text`, by prefix doubling: Manber and Myers, "Suffix arrays" (1993), on 64-bit keys."""
        size, bits = text.size, 8 * text.itemsize if text.itemsize == 2 else 21
        sorted_length = 64 // bits
        key = np.zeros(size, np.uint64)
        for offset in range(sorted_length):
            key <<= np.uint64(bits)
            key[: max(0, size - offset)] |= text[offset:]
        while True:
            order = np.argsort(key)
            ordered = key[order]
            number = np.cumsum(np.append(False, ordered[1:] != ordered[:-1]))
            if sorted_length >= _SORTED or number[-1] == size - 1:
                return cls(text, order.astype(np.int32))
            rank = np.zeros(size + sorted_length, np.uint64)
            rank[order] = number + 1  # 0 is what stands behind the end
            key = (rank[:size] << np.uint64(32)) | rank[sorted_length:]
            sorted_length *= 2

    @classmethod
    def checked(cls, text: np.ndarray, order: np.ndarray, dtype: np.dtype, vocabulary_size: int) -> Segment:
        """Segment of stored arrays. Raises ValueError that says what is wrong with them."""
        if text.dtype != dtype or text.ndim != 1 or order.dtype != np.int32 or order.shape != text.shape:
            raise ValueError(
                f"text is {text.dtype} {text.shape} and order {order.dtype} {order.shape}; "
                f"expected {dtype} and int32 of one length"
            )
        if not text.size or text[0] >= SHIFT or text.max() >= vocabulary_size + SHIFT:
            raise ValueError(f"text holds what is no token of a vocabulary of {vocabulary_size}")
        inside = 0 <= order.min() <= order.max() < text.size
        if not inside or not np.array_equal(np.bincount(order, minlength=text.size), np.ones(text.size)):
            raise ValueError("order is no permutation of the text's positions")
        return cls(text, order)

    def around(self, needles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The last search key before each needle, bytes [...], as a suffix's number; it and the 16 suffixes behind it.

        The numbers are int64 [...], the suffixes bytes [..., 17], the last of all repeated.
        """
        low = np.maximum(self.keys.searchsorted(needles) - 1, 0) * _STRIDE
        return low, self._contexts[self.order.take(low[..., None] + _WINDOW, mode="clip")]

    def behind(self, suffixes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What follows the first `lengths` codes of `suffixes`, int64 [r] each: bytes [r]."""
        return self._branches[self.order.take(suffixes) + lengths]

    def _stretches(self, length: int) -> np.ndarray:
        """The `length` codes from each position on, as bytes that compare as they do; shares their memory."""
        itemsize = self.codes.itemsize
        return np.ndarray(self.codes.size - length, f"S{length * itemsize}", self.codes, strides=(itemsize,))
