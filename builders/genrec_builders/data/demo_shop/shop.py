"""The shop as a dataset: its catalogue, its shoppers' histories, and what they typed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from genrec_builders.data import Dataset
from genrec_builders.data.demo_shop.catalogue import make_catalogue
from genrec_builders.data.demo_shop.offers import make_columns
from genrec_builders.data.demo_shop.queries import make_queries
from genrec_builders.data.demo_shop.simulation import simulate


def make_demo_shop(n_items: int = 5000, n_users: int = 12000, seed: int = 0) -> Dataset:
    """Makes the shop: 12 departments, their items with titles, categories, brands and embeddings, and histories.

    Embeddings (float32 [n_items, 64], unit length) tell of an item what its text would: department, type, brand, line,
    variant, series. They and the rest of the catalogue are drawn before, and apart from, any shopper: the same
    `n_items` and `seed` give the same catalogue for any `n_users`. Histories have 5 to 60 items. Half of the purchases
    follow a text query; queries are drawn apart from everything else, and so are the columns that rules filter by:
    title, category, brand, price, in_stock, released and markets. Raises ValueError for fewer than 100 items or no
    users.
    """
    if n_items < 100 or n_users < 1:
        raise ValueError(f"n_items is {n_items} and n_users {n_users}; use at least 100 items and 1 user")
    catalogue_seed, shoppers_seed, queries_seed, offers_seed = np.random.SeedSequence(seed).spawn(4)
    items, catalogue = make_catalogue(n_items, np.random.default_rng(catalogue_seed))
    interactions = simulate(catalogue, n_users, np.random.default_rng(shoppers_seed))
    queries = make_queries(items, interactions.rows, np.random.default_rng(queries_seed))
    items = replace(items, columns=make_columns(items.attributes, np.random.default_rng(offers_seed)))
    return Dataset(items, replace(interactions, queries=pa.array(queries, pa.large_string())))
