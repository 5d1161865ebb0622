"""What the demo shop's shoppers type before they take an item: a few words that fit it, and often others as well."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import yaml

from genrec_builders.data import ItemTable

SHARE = 0.5  # of the interactions that have a query
_P_TYPO = 0.06
_P_OMISSION = 0.05  # one of several words is left out
_P_CAPITALS = 0.15

_TABLES = yaml.safe_load(resources.files("genrec_builders.data.demo_shop").joinpath("queries.yaml").read_text("utf-8"))
_KINDS = [kind for kind, share in _TABLES["kinds"].items() for _ in range(share)]  # to draw from


class Wording:
    """The words that say what one item is.

    title: of the item, without what stands behind a comma or colon. details: its words that are neither brand nor
    type, such as line, size, or the name of a series.
    """

    def __init__(self, title: str, category: str, brand: str) -> None:
        self.department, _, plural = category.partition(" > ")
        self.brand = brand
        head = title.partition(",")[0].partition(":")[0]
        self.is_branded = title.startswith(brand)
        self.words = head.removeprefix(brand).split()
        if self.is_branded:
            self.types = [plural, _singular(plural)]
        else:
            self.types = [plural, _singular(plural) if plural.endswith("s") else f"{plural} book"]
        telling = (word for word in self.words if len(word) > 2 and word not in ("The", "for"))
        self.details = [word for word in telling if word.lower() not in plural.lower()]

    def query(self, kind: str, rolls: list[float]) -> str:
        """A query of a kind in `queries.yaml`. rolls: three random numbers in [0, 1)."""
        thing = self.types[int(rolls[0] * len(self.types))]
        if kind == "type":
            return thing
        if kind == "brand type":
            return f"{self.brand} {thing}"
        if kind == "department type":
            return f"{self.department} {thing}"
        if kind == "brand":
            return self.brand
        if kind == "department":
            return self.department
        if kind == "name" and not self.is_branded:
            return " ".join(self.words)
        if kind == "part" and len(self.words) > 2:
            start = int(rolls[1] * (len(self.words) - 1))
            return " ".join(self.words[start : start + 2])
        detail = self.details[int(rolls[2] * len(self.details))] if self.details else self.brand
        return f"{detail} {thing}"


def make_queries(items: ItemTable, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
    """The query that led to each of `rows` (int32 [N], items with title, category and brand); "" for half of them."""
    titles, categories, brands = (items.attributes[name] for name in ("title", "category", "brand"))
    wordings: dict[int, Wording] = {}
    asked = rng.random(len(rows)) < SHARE
    kinds = rng.integers(0, len(_KINDS), len(rows))
    rolls = rng.random((len(rows), 8))
    queries = [""] * len(rows)
    for at in np.flatnonzero(asked).tolist():
        row = int(rows[at])
        if row not in wordings:
            wordings[row] = Wording(titles[row], categories[row], brands[row])
        roll = rolls[at].tolist()
        queries[at] = _as_typed(wordings[row].query(_KINDS[kinds[at]], roll[:3]), roll[3:])
    return queries


def _as_typed(text: str, rolls: list[float]) -> str:
    """`text` as people type it: mostly in lower case, at times with a word or a letter wrong."""
    omission, typo, capitals, where, which = rolls
    words = text.split() if capitals < _P_CAPITALS else text.lower().split()
    if omission < _P_OMISSION and len(words) > 1:
        words.pop(int(where * len(words)))
    if typo < _P_TYPO:
        place = int(where * len(words))
        word = words[place]
        letter = 1 + int(which * (len(word) - 2))
        if len(word) > 3:
            swapped = word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :]
            dropped = word[:letter] + word[letter + 1 :]
            words[place] = swapped if where * 100 % 1 < 0.5 else dropped
    return " ".join(words)


@cache
def _singular(plural: str) -> str:
    for ending, singular in _TABLES["singular_endings"].items():
        if plural.endswith(ending):
            return plural.removesuffix(ending) + singular
    return plural.removesuffix("s")
