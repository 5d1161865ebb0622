"""What the steps need of a catalogue, whichever way it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from genrec.catalog.columns import Columns


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

    @property
    def live_items(self) -> int:
        """How many items can be recommended."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each attribute by its name."""

    def attributes_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Columns, np.ndarray]]:
        """Attributes of existing `rows` (integers [m]), of each part of the version that holds any of them.

        Gives where the part's rows are among `rows`, integers [k]; the part's columns; the rows in these, integers [k].
        """

    def popularity_of(self, rows: np.ndarray) -> np.ndarray:
        """Popularity of existing `rows` (integers [m]): int64 [m]."""

    def are_live(self, rows: np.ndarray) -> np.ndarray:
        """Which of existing `rows` (integers [m]) can be recommended in this version: bool [m]."""

    def parts(self) -> Iterator[tuple[int, Columns, np.ndarray | None, int]]:
        """All items that may be live, part by part.

        Gives the first row; the columns; which of these rows may be live, bool [m], None for all; and m. In a version
        over a base some of them are not, which `are_live` tells.
        """

    def popular_slices(self) -> Iterator[np.ndarray]:
        """All live rows by falling popularity, in slices that grow: integers [m] each."""

    def sample_rows(self, count: int) -> np.ndarray:
        """About `count` live rows, evenly chosen; all if there are fewer."""

    def changed_since(self, version: int) -> np.ndarray | None:
        """Live rows of which something may have changed since `version`, [m]; None if that is not known any more."""


class BucketView(Protocol):
    """The available items of each semantic ID: the authority on what a user gets to see."""

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        """Buckets of codes: int64, any shape -> integers, same shape, -1 where no live item has the code."""

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of existing `buckets` [m], in order: rows int32 [n], and which bucket of m each is from.

        Within a bucket by falling popularity.
        """
