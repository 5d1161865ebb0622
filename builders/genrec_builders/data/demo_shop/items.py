"""The items one by one: what they are called and what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec_builders.data.demo_shop.assortment import ASSORTMENT


@dataclass(frozen=True)
class Traits:
    """What tells items apart: an int64 array [n] per trait, -1 for none.

    kind: place in the assortment's types. volume: counts from 0 in its series, and is 0 for other items.
    """

    department: np.ndarray
    kind: np.ndarray
    brand: np.ndarray
    line: np.ndarray
    variant: np.ndarray
    series: np.ndarray
    volume: np.ndarray


def draw_items(n: int, rng: np.random.Generator) -> tuple[list[str], Traits]:
    """The titles of `n` items, all different, and their traits."""
    counts = _counts(n, rng)
    drawer = _Drawer(rng)
    for kind, count in enumerate(counts):
        if ASSORTMENT.types[kind].variants:
            drawer.draw_variants(kind, count)
        else:
            drawer.draw_series(kind, count)
    return drawer.shuffled()


def _counts(n: int, rng: np.random.Generator) -> list[int]:
    """How many of `n` items are of each type."""
    # Series need more room for the same number of choices, since each is several items.
    room = np.array([1.0 if kind.variants else 2.0 for kind in ASSORTMENT.types])
    shares = room * rng.uniform(0.7, 1.3, len(room))
    counts = np.floor(shares / shares.sum() * n).astype(int)
    counts[np.argsort(-shares)[: n - counts.sum()]] += 1
    return counts.tolist()


class _Drawer:
    """Draws the items of one type after the other."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._series_names = _SeriesNames(rng)
        self._titles: list[str] = []
        self._traits: list[tuple[int, ...]] = []  # in the order of `Traits`
        self._lines: dict[str, int] = {}
        self._variants: dict[str, int] = {}

    def draw_variants(self, kind: int, count: int) -> None:
        """Items of a type that differ by brand, line and variant."""
        of = ASSORTMENT.types[kind]
        department = ASSORTMENT.departments[of.department]
        sizes = (len(department.brands), len(department.lines), len(of.variants))
        for b, ln, v, copy in _distinct_choices(sizes, count, self._rng):
            brand, line, variant = department.brands[b], department.lines[ln], of.variants[v]
            self._titles.append(_copied(of.variant_title(ASSORTMENT.brands[brand], line, variant), copy))
            line_id = self._lines.setdefault(line, len(self._lines))
            self._traits.append((of.department, kind, brand, line_id, self._variant_id(variant), -1, 0))

    def draw_series(self, kind: int, count: int) -> None:
        """Series of a type, of 3 to 7 volumes; the last one may be cut short."""
        of = ASSORTMENT.types[kind]
        brands = ASSORTMENT.departments[of.department].brands
        while count:
            series, length = self._series_names.taken, min(count, int(self._rng.integers(3, 8)))
            brand = int(self._rng.choice(brands))
            name = self._series_names.take_subject(of.subjects) if of.subjects else self._series_names.take()
            for volume in range(length):
                self._titles.append(of.volume_title(name, volume))
                variant_id = self._variant_id(f"volume {volume + 1}")
                self._traits.append((of.department, kind, brand, -1, variant_id, series, volume))
            count -= length

    def shuffled(self) -> tuple[list[str], Traits]:
        """The items in an order where a row number tells nothing about its item."""
        order = self._rng.permutation(len(self._titles))
        return [self._titles[i] for i in order.tolist()], Traits(*np.array(self._traits, dtype=np.int64)[order].T)

    def _variant_id(self, variant: str) -> int:
        return self._variants.setdefault(variant, len(self._variants))


class _SeriesNames:
    """Hands out distinct names for series, such as "The Salt Road"."""

    def __init__(self, rng: np.random.Generator) -> None:
        first, second = ASSORTMENT.series_names
        self._names = [(a, b) for a in first for b in second]
        self._order = rng.permutation(len(self._names)).tolist()
        self._subjects = 0
        self.taken = 0

    def take(self) -> str:
        cycle, place = divmod(self.taken, len(self._order))
        self.taken += 1
        first, second = self._names[self._order[place]]
        return f"The {first} {second}{f' (Cycle {cycle + 1})' if cycle else ''}"

    def take_subject(self, subjects: Sequence[str]) -> str:
        course, place = divmod(self._subjects, len(subjects))
        self.taken += 1
        self._subjects += 1
        return f"{subjects[place]}{f' (Course {course + 1})' if course else ''}"


def _distinct_choices(
    sizes: tuple[int, int, int], count: int, rng: np.random.Generator
) -> list[tuple[int, int, int, int]]:
    """`count` distinct (brand, line, variant, copy); copies beyond 0 only when all combinations are taken."""
    total = int(np.prod(sizes))
    copies, rest = divmod(count, total)
    flat = np.concatenate([np.arange(copies * total), copies * total + rng.permutation(total)[:rest]])
    brand, line, variant = np.unravel_index(flat % total, sizes)
    return list(zip(brand.tolist(), line.tolist(), variant.tolist(), (flat // total).tolist(), strict=True))


def _copied(title: str, copy: int) -> str:
    if copy == 0:
        return title
    edition, shade = divmod(copy - 1, len(ASSORTMENT.shades))
    return f"{title}, {ASSORTMENT.shades[shade]}" + (f" (Edition {edition + 1})" if edition else "")
