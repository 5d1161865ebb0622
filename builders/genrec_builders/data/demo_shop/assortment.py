"""What the shop sells, as `assortment.yaml` has it: departments, their brands and types of product, and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class ProductType:
    """A type of product; its items differ by variant, or, without variants, are the volumes of a series.

    category: "<department> > <plural>". accessories: places in the assortment's types of what belongs to it.
    The rest is explained in `assortment.yaml`.
    """

    department: int
    category: str
    accessories: Sequence[int]
    noun: str = ""
    variants: Sequence[str] = ()
    consumable: bool = False
    volume: str = ""
    first_volume: str = ""
    subjects: Sequence[str] = ()

    @property
    def durable(self) -> bool:
        """Whether one of its items is usually enough."""
        return bool(self.variants) and not self.consumable

    def variant_title(self, brand: str, line: str, variant: str) -> str:
        if variant.startswith("for "):  # such as "for Mira 5"
            return f"{brand} {line} {self.noun} {variant}"
        return f"{brand} {line} {variant} {self.noun}"

    def volume_title(self, series: str, volume: int) -> str:
        """volume: counts from 0."""
        if self.first_volume and volume == 0:
            return self.first_volume.format(series=series)
        return self.volume.format(series=series, number=volume + (0 if self.first_volume else 1))


@dataclass(frozen=True)
class Department:
    """brands: places in the assortment's brands."""

    name: str
    lines: Sequence[str]
    brands: Sequence[int]


@dataclass(frozen=True)
class Assortment:
    """Everything in `assortment.yaml`; brands are sorted by name, types by department."""

    departments: Sequence[Department]
    types: Sequence[ProductType]
    brands: Sequence[str]
    shades: Sequence[str]
    series_names: tuple[Sequence[str], Sequence[str]]


def _read_assortment() -> Assortment:
    text = resources.files("genrec_builders.data.demo_shop").joinpath("assortment.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    tables: dict[str, dict[str, Any]] = content["departments"]
    brands = sorted({brand for table in tables.values() for brand in table["brands"]})
    brand_place = {brand: place for place, brand in enumerate(brands)}
    names = [(department, plural) for department, table in tables.items() for plural in table["types"]]
    type_place = {name: place for place, name in enumerate(names)}
    departments, types = [], []
    for place, (department, table) in enumerate(tables.items()):
        departments.append(Department(department, table["lines"], [brand_place[brand] for brand in table["brands"]]))
        for plural, fields in table["types"].items():
            accessories = [type_place[department, accessory] for accessory in fields.get("accessories", ())]
            given = fields | {"accessories": accessories}
            types.append(ProductType(place, f"{department} > {plural}", **given))
    series_names = content["series_names"]["first"], content["series_names"]["second"]
    return Assortment(departments, types, brands, content["shades"], series_names)


ASSORTMENT = _read_assortment()
