"""Training examples: users' sequences cut into windows, and prompts with queries, drawn in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from genrec.prompt import PromptLayout
from genrec_builders.training.objective import Batch, PackedBatch, PromptBatch
from genrec_builders.training.query import EncodedQueries


class Source(Protocol):
    """Where batches come from. Every epoch has as many."""

    def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
        """The examples of each batch of an epoch, in random order; integers [M] each."""

    def batch(self, examples: np.ndarray, seed: int, epoch: int) -> Batch:
        """One batch of a plan."""


@dataclass(frozen=True)
class Windows:
    """Slices of users' sequences to train on: rows [start, start + length) of `items`; the last `targets` count."""

    items: np.ndarray
    start: np.ndarray
    length: np.ndarray
    targets: np.ndarray


def make_windows(offsets: np.ndarray, rows: np.ndarray, max_history: int) -> Windows:
    """Windows of at most `max_history` + 1 items that make every item but a user's first a target exactly once.

    offsets: int64 [U + 1], rows: int32 [N], the users' training sequences. Long sequences give overlapping windows,
    so that a target has at least half of the longest history before it.
    """
    longest = max_history + 1
    stride = max(1, longest // 2)
    sizes = np.diff(offsets)
    count = np.where(sizes > longest, 1 + -(-(sizes - longest) // stride), 1)
    user = np.repeat(np.arange(sizes.size), count)
    step = np.arange(user.size) - np.repeat(np.cumsum(count) - count, count)  # 0 is the user's last window
    end = sizes[user] - step * stride
    start = np.maximum(0, end - longest)
    last = step == count[user] - 1
    targets = np.where(last, end - start - 1, stride)
    keep = end - start >= 2
    return Windows(rows, (offsets[user] + start)[keep], (end - start)[keep], np.minimum(targets, end - start - 1)[keep])


@dataclass(frozen=True)
class PackedWindows:
    """Windows as packed rows. sids: int32 [n, L], of the catalogue's rows."""

    windows: Windows
    sids: np.ndarray
    layout: PromptLayout

    def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
        """Window numbers, alike in length; tokens_per_batch counts packed tokens, padding included.

        Placeholders are counted even where a decoder has none: a batch holds the same targets for either.
        """
        rng = np.random.default_rng([seed, epoch])
        length = self.windows.length
        order = np.argsort(rng.random(length.size))
        small = length[order].astype(np.min_scalar_type(length.max(initial=0)))  # numpy counts those of 16 bits or less
        order = order[np.argsort(small, kind="stable")]
        batches, at = [], order.size
        while at > 0:  # from the longest down, so that the first of a batch sets its width
            width = self._tokens(length[order[at - 1]])
            size = max(1, tokens_per_batch // int(width))
            batches.append(order[max(0, at - size) : at])
            at -= size
        return [batches[i] for i in rng.permutation(len(batches))]

    @property
    def tokens_per_epoch(self) -> int:
        """Packed tokens of all windows, without padding."""
        return int(self._tokens(self.windows.length).sum())

    def _tokens(self, length: Any) -> Any:
        return len(self.layout.opening) + (self.layout.item_tokens + self.layout.space.depth) * (length - 1)

    def batch(self, examples: np.ndarray, seed: int, epoch: int) -> PackedBatch:
        """Packed rows of windows [M], padded at the end."""
        length = self.windows.length[examples]
        at = np.arange(length.max())
        inside = np.minimum(at, length[:, None] - 1)
        sids = self.sids[self.windows.items[self.windows.start[examples][:, None] + inside]]
        counted = (at < length[:, None]) & (at >= (length - self.windows.targets[examples])[:, None])
        return PackedBatch(sids, counted[:, 1:])


@dataclass(frozen=True)
class QueryPrompts:
    """Interactions that a query led to, each a prompt of its own: the query stands before the history.

    offsets: int64 [U + 1], rows: int32 [N], the users' training sequences. queries: of each interaction. An epoch
    draws examples up to `share` of `packed_tokens`, and drops the history of one in ten: a query can come alone.
    """

    offsets: np.ndarray
    rows: np.ndarray
    queries: EncodedQueries
    sids: np.ndarray
    layout: PromptLayout
    packed_tokens: int
    share: float = 1.0
    alone: float = 0.1

    def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
        """Interactions, alike in prompt length; tokens_per_batch counts prompt tokens, padding included."""
        rng = np.random.default_rng([seed, epoch])
        asked = rng.permutation(np.flatnonzero(self.queries.lengths[self.queries.which] > 0))
        sizes = self._history(asked, seed, epoch)[1] * self.layout.item_tokens
        sizes = sizes + len(self.layout.opening) + len(self.layout.placeholders) + self.layout.max_query
        drawn = int(np.searchsorted(np.cumsum(sizes), self.share * self.packed_tokens, "right"))
        asked, sizes = asked[:drawn], sizes[:drawn]
        order = np.argsort(sizes, kind="stable")
        batches, at = [], order.size
        while at > 0:
            count = max(1, tokens_per_batch // int(sizes[order[at - 1]]))
            batches.append(asked[order[max(0, at - count) : at]])
            at -= count
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, examples: np.ndarray, seed: int, epoch: int) -> PromptBatch:
        """Prompts of interactions [M] and the codes of their items."""
        starts, sizes = self._history(examples, seed, epoch)
        which = self.queries.which[examples]
        prompts = [
            self.layout.encode(
                self.sids[self.rows[start : start + size]], self.queries.tokens[query, : self.queries.lengths[query]]
            )
            for start, size, query in zip(starts, sizes, which, strict=True)
        ]
        return PromptBatch(prompts, self.sids[self.rows[examples]])

    def _history(self, examples: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each example's history starts in `rows`, and its items: int64 [M] each."""
        first = self.offsets[np.searchsorted(self.offsets, examples, "right") - 1]
        sizes = np.minimum(examples - first, self.layout.max_history)
        alone = np.random.default_rng([seed, epoch, 2]).random(self.rows.size)[examples] < self.alone
        sizes = np.where(alone, 0, sizes)
        return examples - sizes, sizes
