"""The shoppers: what each of them takes, one item after the other."""

from __future__ import annotations

import numpy as np

from genrec_builders.data import Interactions
from genrec_builders.data.demo_shop.catalogue import Catalogue

MIN_LENGTH, MAX_LENGTH = 5, 60

# How shoppers behave; all are probabilities per purchase.
_P_SEQUEL = 0.55  # the next volume of the series begun last
_P_ACCESSORY = 0.42  # something that belongs to the purchase before
_P_NOISE = 0.06  # anything, by popularity
_P_STAY = 0.70  # stay in the department of the purchase before
_P_FAVOURITE = 0.65  # the favourite brand of the department
_P_DRIFT = 0.03  # one interest is replaced by a new one
_P_REPEAT = 0.03  # let a repeated purchase stand
_P_SECOND_OF_TYPE = 0.35  # let a second tent stand, say
_INTERESTS = np.array([0.60, 0.28, 0.12])
_CHANGES_OF_MIND = 3  # before a shopper takes it after all


def simulate(shop: Catalogue, n_users: int, rng: np.random.Generator) -> Interactions:
    """The histories of `n_users` shoppers. All take one step at a time, together."""
    shoppers = _Shoppers(shop, n_users, rng)
    for step in range(shoppers.longest):
        shoppers.buy(step)
    return shoppers.interactions()


class _Shoppers:
    """What shoppers like, and what they have taken so far.

    Longest history first: those still at it are always a prefix, `active` of them. Steps return int64 [active] items,
    -1 where the shopper has no reason to take one.
    """

    def __init__(self, shop: Catalogue, n_users: int, rng: np.random.Generator) -> None:
        self._shop, self._rng, self._floor = shop, rng, _Floor(shop)
        lengths = np.rint(np.exp(rng.normal(np.log(13.0), 0.5, n_users)))
        self._lengths = -np.sort(-np.clip(lengths, MIN_LENGTH, MAX_LENGTH).astype(np.int64))
        attraction = _attraction(shop)
        mixed = rng.dirichlet(np.full(shop.n_departments, 0.4), shop.n_departments)
        self._related = mixed * 0.8 + 0.2 * attraction  # [departments, departments] probabilities
        self._interests = _three_interests(attraction, self._related, n_users, rng)
        self._favourite = _favourite_brands(shop.home, n_users, rng)
        self._bought = np.full((n_users, MAX_LENGTH), -1, dtype=np.int64)
        self._pending = np.full(n_users, -1, dtype=np.int64)  # the next volume of the series begun last
        self._here = self._interests[:, 0].copy()  # the department of the purchase before

    @property
    def longest(self) -> int:
        return int(self._lengths[0])

    def buy(self, step: int) -> None:
        """Everybody whose history is longer than `step` takes an item."""
        active = int(np.searchsorted(-self._lengths, -step, side="left"))
        self._drift(active)
        sequel, accessory = self._sequels(active), self._accessories(active, step)
        choice = np.where(sequel >= 0, sequel, accessory)
        self._pick_the_rest(choice, step)
        self._take(choice, step)

    def interactions(self) -> Interactions:
        """All histories, in random order."""
        n_users = len(self._lengths)
        order = self._rng.permutation(n_users)
        offsets = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(self._lengths[order], out=offsets[1:])
        taken = np.arange(MAX_LENGTH) < self._lengths[order][:, None]
        rows = self._bought[order][taken].astype(np.int32)
        return Interactions(user_ids=[f"u{i:06d}" for i in range(n_users)], offsets=offsets, rows=rows)

    def _drift(self, active: int) -> None:
        """Some replace one of their interests by a department that goes with their main one."""
        drift = self._rng.random(active) < _P_DRIFT
        new = _categorical(self._related[self._interests[:active, 0]], self._rng)
        which = self._rng.integers(0, len(_INTERESTS), active)
        self._interests[np.flatnonzero(drift), which[drift]] = new[drift]

    def _sequels(self, active: int) -> np.ndarray:
        """The next volume of a series."""
        pending = self._pending[:active]
        return np.where(self._rng.random(active) < _P_SEQUEL, pending, -1)

    def _accessories(self, active: int, step: int) -> np.ndarray:
        """Something new that belongs to the purchase before."""
        which = np.searchsorted([0.6, 0.85], self._rng.random(active))
        wanted = self._rng.random(active) < _P_ACCESSORY
        if step == 0:
            return np.full(active, -1, dtype=np.int64)
        belongs = self._shop.accessories[self._bought[:active, step - 1], which]
        owned = (self._bought[:active, :step] == belongs[:, None]).any(axis=1)
        return np.where(wanted & ~owned, belongs, -1)

    def _pick_the_rest(self, choice: np.ndarray, step: int) -> None:
        """Fills the gaps in `choice` by what shoppers meet on the floor, which they may put back a few times."""
        for attempt in range(_CHANGES_OF_MIND + 1):
            users = np.flatnonzero(choice < 0)
            if not users.size:
                break
            choice[users] = self._meet(users)
            if attempt < _CHANGES_OF_MIND:
                choice[users[self._put_back(users, choice[users], step)]] = -1

    def _meet(self, users: np.ndarray) -> np.ndarray:
        """int64 [users]: an item of the department where they are, or of one that they like."""
        slot = np.searchsorted(np.cumsum(_INTERESTS)[:-1], self._rng.random(len(users)))
        stay = self._rng.random(len(users)) < _P_STAY
        department = np.where(stay, self._here[users], self._interests[users, slot])
        return self._floor.pick(department, self._favourite[users, department], self._rng)

    def _put_back(self, users: np.ndarray, choice: np.ndarray, step: int) -> np.ndarray:
        """bool [users]: mostly what they have already, or, of durable things, one of its type."""
        past, kind = self._bought[users, :step], self._shop.traits.kind
        repeated = (past == choice[:, None]).any(axis=1)
        twice = (kind[past] == kind[choice][:, None]).any(axis=1) & self._shop.durable[choice]
        chance = self._rng.random(len(users))
        return (repeated & (chance > _P_REPEAT)) | (twice & (chance > _P_SECOND_OF_TYPE))

    def _take(self, choice: np.ndarray, step: int) -> None:
        active = len(choice)
        self._bought[:active, step] = choice
        self._here[:active] = self._shop.traits.department[choice]
        in_series = self._shop.traits.series[choice] >= 0
        self._pending[:active] = np.where(in_series, self._shop.sequel[choice], self._pending[:active])


class _Floor:
    """Where shoppers pick something when nothing in particular is due."""

    def __init__(self, shop: Catalogue) -> None:
        self._first, self._n_brands = shop.first, shop.n_brands
        department, brand = shop.traits.department, shop.traits.brand
        self._brands = _Shelves(department * shop.n_brands + brand, shop.n_departments * shop.n_brands, shop.weight)
        self._departments = _Shelves(department, shop.n_departments, shop.weight)
        self._everything = _Shelves(np.zeros_like(department), 1, shop.weight)

    def pick(self, department: np.ndarray, favourite: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [u]: an item for shoppers in these departments with these favourite brands (int64 [u] each)."""
        count = len(department)
        choice = self._brands.draw(department * self._n_brands + favourite, rng)
        plain = (choice < 0) | (rng.random(count) >= _P_FAVOURITE)
        choice[plain] = self._departments.draw(department[plain], rng)
        noise = (choice < 0) | (rng.random(count) < _P_NOISE)
        choice[noise] = self._everything.draw(np.zeros(int(noise.sum()), dtype=np.int64), rng)
        # Few begin a series in the middle.
        return np.where(rng.random(count) < 0.9, self._first[choice], choice)


class _Shelves:
    """Draws items by popularity from the cells of a partition, for many shoppers at once."""

    def __init__(self, cell: np.ndarray, n_cells: int, weight: np.ndarray) -> None:
        self._rows = np.argsort(cell, kind="stable")
        self._edges = np.searchsorted(cell[self._rows], np.arange(n_cells + 1))
        self._cumulative = np.concatenate([[0.0], np.cumsum(weight[self._rows])])

    def draw(self, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [u]: an item of each cell, -1 where the cell is empty."""
        low, high = self._edges[cell], self._edges[cell + 1]
        point = self._cumulative[low] + rng.random(len(cell)) * (self._cumulative[high] - self._cumulative[low])
        place = np.searchsorted(self._cumulative, point, side="right") - 1
        return np.where(low < high, self._rows[np.clip(place, low, np.maximum(high - 1, low)) % len(self._rows)], -1)


def _attraction(shop: Catalogue) -> np.ndarray:
    """float64 [departments]: how likely each is somebody's main interest."""
    size = np.bincount(shop.traits.department, weights=shop.weight, minlength=shop.n_departments)
    return size**0.5 / (size**0.5).sum()


def _three_interests(attraction: np.ndarray, related: np.ndarray, n_users: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [users, 3]: a department by attraction, then two that go with it."""
    main = _categorical(np.broadcast_to(attraction, (n_users, len(attraction))), rng)
    return np.stack([main, _categorical(related[main], rng), _categorical(related[main], rng)], axis=1)


def _favourite_brands(home: np.ndarray, n_users: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [users, departments]: mostly the brand of each shopper's price tier."""
    n_tiers = home.shape[1]
    favourite = home[:, rng.integers(0, n_tiers, n_users)].T.copy()
    stray = rng.random(favourite.shape) < 0.25
    favourite[stray] = home[np.nonzero(stray)[1], rng.integers(0, n_tiers, int(stray.sum()))]
    return favourite


def _categorical(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [u]: one draw per row of float [u, k]."""
    edges = np.cumsum(probabilities, axis=1)
    return (edges < rng.random(len(edges))[:, None] * edges[:, -1:]).sum(axis=1)
