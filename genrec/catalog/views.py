"""What the steps need of a catalogue, whichever way it is stored."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class CatalogView(Protocol):
    """One version of a catalogue. Rows are valid within it only."""

    @property
    def popular_rows(self) -> np.ndarray:
        """int32 [m]: available rows by falling popularity; all of them, or as many as any answer can need."""

    def __len__(self) -> int:
        """Rows that there are."""

    def rows_of(self, item_ids: np.ndarray) -> np.ndarray:
        """Rows of item ids: object array of bytes [m] -> int32 [m], -1 for ids that are not known."""

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """Ids of existing `rows` (integers [m]): object array of bytes [m]."""

    def sids_of(self, rows: np.ndarray) -> np.ndarray:
        """Semantic IDs of existing `rows` (integers [m]): integers [m, L]."""


class BucketView(Protocol):
    """The available items of each semantic ID: the authority on what a user gets to see."""

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        """Buckets of codes: int64, any shape -> integers, same shape, -1 where no live item has the code."""

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of existing `buckets` [m], in order: rows int32 [n], and which bucket of m each is from.

        Within a bucket by falling popularity.
        """
