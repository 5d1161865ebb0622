"""A live catalogue that begins with what a bundle holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from genrec.bundle import Bundle
from genrec.live.changes import Changes
from genrec.live.store import CatalogStore

_SLICE = 1 << 18  # items that are in memory twice at once


def init_catalog(bundle: Bundle, location: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Make a live catalogue at `location`, whose version 0 has the items of the bundle.

    Raises CatalogStoreError if the location holds anything or cannot be written to.
    """
    quantizer = bundle.quantizer
    CatalogStore.create(
        location,
        bundle.space,
        _items(bundle),
        storage_options,
        width=None if quantizer is None else quantizer.dim,
        kinds=bundle.catalog.kinds,
        message=f"bundle {bundle.manifest.bundle_version}",
    )


def _items(bundle: Bundle) -> Iterator[Changes]:
    catalog = bundle.catalog
    for start in range(0, len(catalog), _SLICE):
        part = slice(start, start + _SLICE)
        ids = catalog.item_ids[part]
        yield Changes(
            ids,
            np.zeros(ids.size, bool),
            bundle.space.encode(catalog.sids[part]),
            catalog.popularity[part],
            catalog.available[part].astype(np.int8),
            catalog.columns.slice(start, start + ids.size),
            np.ones(ids.size, bool),
        )
