"""What the steps need of a catalogue, whichever way it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from genrec.catalog.columns import Columns
from genrec.catalog.semantic_id import SemanticIdSpace


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
    def kinds(self) -> Mapping[str, str]:
        """The kind of each attribute by its name."""

    def attributes_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Columns, np.ndarray]]:
        """Attributes of existing `rows` (integers [m]), of each part of the version that holds any of them.

        Gives where the part's rows are among `rows`, integers [k]; the part's columns; the rows in these, integers [k].
        """

    def live_slices(self, space: SemanticIdSpace) -> Iterator[tuple[Columns, np.ndarray, np.ndarray]]:
        """All live items, slice by slice, without a copy of the columns.

        space: of the catalogue's semantic IDs. Gives columns of k items; bool [k], which of them are live in this
        version; and their codes, integers [k], those of the others being of no use.
        """


class BucketView(Protocol):
    """The available items of each semantic ID: the authority on what a user gets to see."""

    def buckets_of(self, codes: np.ndarray) -> np.ndarray:
        """Buckets of codes: int64, any shape -> integers, same shape, -1 where no live item has the code."""

    def expand(self, buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items of existing `buckets` [m], in order: rows int32 [n], and which bucket of m each is from.

        Within a bucket by falling popularity.
        """
