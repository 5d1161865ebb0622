"""The catalogue: the items as a table, and what shoppers find out about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrec_builders.data import ItemTable
from genrec_builders.data.demo_shop.assortment import ASSORTMENT
from genrec_builders.data.demo_shop.items import Traits, draw_items

EMBEDDING_DIM = 64
NOISE = 0.5
_TIERS = 3  # of price: budget, middle, premium


@dataclass(frozen=True)
class Catalogue:
    """What the simulation needs of the items; arrays have one entry per item unless noted.

    first: the first volume of the item's series, or the item itself. sequel: the next volume, -1 for none.
    weight: popularity, float64 > 0. accessories: int64 [n, 3], items in falling likelihood, -1 for none.
    home: int64 [departments, tiers], a brand of that tier. durable: whether one of its type is usually enough.
    """

    traits: Traits
    first: np.ndarray
    sequel: np.ndarray
    weight: np.ndarray
    accessories: np.ndarray
    home: np.ndarray
    durable: np.ndarray

    @property
    def n_brands(self) -> int:
        return len(ASSORTMENT.brands)

    @property
    def n_departments(self) -> int:
        return len(ASSORTMENT.departments)


def make_catalogue(n: int, rng: np.random.Generator) -> tuple[ItemTable, Catalogue]:
    """`n` items, as users of the dataset see them and as the simulation does."""
    tier = rng.integers(0, _TIERS, len(ASSORTMENT.brands))
    titles, traits = draw_items(n, rng)
    first, sequel = _chains(traits)
    weight = _popularity(traits, tier, rng)
    accessories = _accessories(traits, weight, rng)
    embeddings = _embeddings(traits, rng)
    home = _home_brands(tier, rng)
    durable = np.array([kind.durable for kind in ASSORTMENT.types])[traits.kind]
    return _table(titles, traits, embeddings), Catalogue(traits, first, sequel, weight, accessories, home, durable)


def _table(titles: list[str], traits: Traits, embeddings: np.ndarray) -> ItemTable:
    attributes = {
        "title": titles,
        "category": [ASSORTMENT.types[kind].category for kind in traits.kind.tolist()],
        "brand": [ASSORTMENT.brands[brand] for brand in traits.brand.tolist()],
    }
    return ItemTable(_item_ids(traits.department), embeddings=embeddings, attributes=attributes)


def _item_ids(department: np.ndarray) -> list[str]:
    """Such as "cam-0012": numbers count within a department."""
    serial = np.zeros_like(department)
    for place in range(len(ASSORTMENT.departments)):
        rows = np.flatnonzero(department == place)
        serial[rows] = np.arange(1, len(rows) + 1)
    prefixes = [ASSORTMENT.departments[place].name[:3].lower() for place in department.tolist()]
    return [f"{prefix}-{number:04d}" for prefix, number in zip(prefixes, serial.tolist(), strict=True)]


def _chains(traits: Traits) -> tuple[np.ndarray, np.ndarray]:
    """(first volume of the item's series or the item itself, next volume or -1), int64 [n] each."""
    series, n = traits.series, len(traits.series)
    first, sequel = np.arange(n), np.full(n, -1, dtype=np.int64)
    rows = np.lexsort((traits.volume, series))
    rows = rows[series[rows] >= 0]
    if rows.size:
        same = series[rows[1:]] == series[rows[:-1]]
        sequel[rows[:-1][same]] = rows[1:][same]
        begin = np.flatnonzero(np.concatenate([[True], ~same]))
        first[rows] = np.repeat(rows[begin], np.diff(np.append(begin, len(rows))))
    return first, sequel


def _popularity(traits: Traits, tier: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [n], Zipf-like: some brands sell better, and later volumes sell mostly to those who read on."""
    n = len(traits.volume)
    brand_taste = rng.normal(0.0, 0.5, len(tier)) - 0.25 * tier
    score = rng.normal(0.0, 1.0, n) + brand_taste[traits.brand] - 1.5 * (traits.volume > 0)
    rank = np.empty(n)
    rank[np.argsort(-score)] = np.arange(n)
    return 1.0 / (rank + 0.01 * n)


def _accessories(traits: Traits, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [n, 3]: what belongs to each item: of an accessory type, preferably of its brand, size and line."""
    rows_of = [np.flatnonzero(traits.kind == kind) for kind in range(len(ASSORTMENT.types))]
    found = np.full((len(traits.kind), 3), -1, dtype=np.int64)
    for kind, of in enumerate(ASSORTMENT.types):
        pool = np.concatenate([rows_of[accessory] for accessory in of.accessories] or [np.empty(0, dtype=np.int64)])
        if not pool.size:
            continue
        liking = 0.4 * np.log(weight[pool])
        for start in range(0, len(rows_of[kind]), 512):
            rows = rows_of[kind][start : start + 512]
            fit = liking + rng.gumbel(0.0, 0.3, (len(rows), len(pool)))
            for trait, strength in ((traits.brand, 3.0), (traits.variant, 2.0), (traits.line, 1.0)):
                fit += strength * (trait[rows][:, None] == trait[pool][None, :])
            best = np.argsort(-fit, axis=1, kind="stable")[:, :3]
            found[rows, : best.shape[1]] = pool[best]
    return found


def _embeddings(traits: Traits, rng: np.random.Generator) -> np.ndarray:
    """float32 [n, 64], unit length: a random direction for each value of each trait, plus noise for the rest."""
    strengths = (
        (traits.department, 1.0),
        (traits.kind, 0.8),
        (traits.brand, 0.5),
        (traits.line, 0.4),
        (traits.variant, 0.4),
        (traits.series, 0.6),
    )
    total = rng.normal(0.0, NOISE / np.sqrt(EMBEDDING_DIM), (len(traits.kind), EMBEDDING_DIM))
    for trait, strength in strengths:
        directions = rng.normal(0.0, 1.0 / np.sqrt(EMBEDDING_DIM), (int(trait.max()) + 2, EMBEDDING_DIM))
        directions[-1] = 0.0  # trait -1: none
        total += strength * directions[trait]
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)


def _home_brands(tier: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [departments, tiers]: a brand of that tier, or any of the department's where none is."""
    home = np.zeros((len(ASSORTMENT.departments), _TIERS), dtype=np.int64)
    for place, department in enumerate(ASSORTMENT.departments):
        brands = np.array(department.brands)
        for t in range(_TIERS):
            of_tier = brands[tier[brands] == t]
            home[place, t] = rng.choice(of_tier if of_tier.size else brands)
    return home
