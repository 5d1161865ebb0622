"""How the shop offers its items: what they cost, where, and since when. Nothing of it is seen by the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.catalog import Column, Columns
from genrec.catalog.kinds import BOOLEAN, NUMBER, STRING, STRINGS, TIMESTAMP

_MARKETS = {"de": 0.9, "fr": 0.8, "us": 0.7, "uk": 0.6, "it": 0.4, "jp": 0.2}  # and which share of the items each has
_IN_STOCK = 0.95
_FIRST_DAY, _DAYS = 17_897, 2_557  # 2019 to 2025, in days since 1970
_DAY_US = 86_400_000_000


def make_columns(texts: Mapping[str, Sequence[str]], rng: np.random.Generator) -> Columns:
    """The columns of `n` items; texts: by name, n each, with `category`, whose items cost about the same."""
    n = len(texts["category"])
    kinds, kind = np.unique(texts["category"], return_inverse=True)
    usual = np.exp(rng.normal(np.log(30.0), 1.0, len(kinds)))
    price = np.maximum(1.0, np.floor(usual[kind] * np.exp(rng.normal(0.0, 0.4, n)))) - 0.01
    in_stock = (rng.random(n) < _IN_STOCK).astype(np.int8)
    released = (_FIRST_DAY + rng.integers(0, _DAYS, n)) * _DAY_US
    sold = rng.random((n, len(_MARKETS))) < list(_MARKETS.values())
    sold[~sold.any(axis=1), 0] = True
    offsets = np.concatenate([[0], sold.sum(axis=1).cumsum()])
    markets = Column.of_words(STRINGS, np.nonzero(sold)[1], np.array(list(_MARKETS), np.bytes_), offsets)
    described = {name: Column.of_values(STRING, values) for name, values in texts.items()}
    offered = {
        "price": Column(NUMBER, np.round(price, 2)),
        "in_stock": Column(BOOLEAN, in_stock),
        "released": Column(TIMESTAMP, released),
        "markets": markets,
    }
    return Columns(described | offered, n)
