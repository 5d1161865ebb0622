"""What can be told about a user or an item: what its prompt shows, and what shoppers take next after a type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrec_builders.data import Dataset, split_leave_one_out
from genrec_builders.knowledge.hashing import text_number

_VOLUME = re.compile(r"(?P<series>.+?),? (?P<kind>Book|Case|Volume|Vol\.|Part|Expansion) (?P<number>\d+)")


@dataclass(frozen=True)
class Facts:
    """What a text may say of one entity, and what its wording follows.

    known: facts by the name that templates have for them, without those that the entity does not have. habits: values
    that entities to be written about alike have in common: the department, the price tier, then finer things.
    """

    known: dict[str, str]
    habits: list[str]


def user_facts(history: Sequence[Mapping[str, str]], after: Mapping[str, tuple[str, str]]) -> Facts:
    """The facts of a user. history: the items that the prompt shows, oldest first. after: `followers`."""
    categories = [item["category"] for item in history]
    # Series have a publisher, which the prompt does not show; other titles begin with their brand.
    brands = [item["brand"] for item in history if item["title"].startswith(item["brand"])]
    tier = round(sum(map(_tier, brands)) / len(brands)) if brands else 1
    known = {"last": history[-1]["title"], "count": str(len(history))}
    known |= _department_facts(categories) | _type_facts(categories, after) | _brand_facts(brands)
    for item in history:  # the series begun last
        known |= _series_facts(item["title"])
    shift = known["now"] if "before" in known else "steady"
    return Facts(known, [known["department"], str(tier), shift, categories[-1], brands[-1] if brands else ""])


def item_facts(item: Mapping[str, str], after: Mapping[str, tuple[str, str]]) -> Facts:
    """The facts of an item, from its attributes. after: `followers`."""
    title, brand, category = item["title"], item["brand"], item["category"]
    department, tier = category.partition(" > ")[0], _tier(brand)
    known = {
        "title": title,
        "brand": brand,
        "department": department,
        "type": _type(category),
        "follows": after[category][0],
        "follows2": after[category][1],
    }
    if series := _series_facts(title):
        known |= series
    elif title.startswith(brand):
        known["line"], _, known["model"] = title.removeprefix(brand).strip().partition(" ")
    return Facts(known, [department, str(tier), category, brand])


def followers(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Per category, the two other ones most often bought next, in the training part."""
    names, codes = np.unique(dataset.items.attributes["category"], return_inverse=True)
    train = split_leave_one_out(dataset.interactions).train
    category, n = codes[train.rows], len(names)
    inside = np.ones(len(category), bool)
    inside[train.offsets[1:] - 1] = False  # the last item of a user has none after it
    steps = category[:-1][inside[:-1]] * n + category[1:][inside[:-1]]
    counts = np.bincount(steps, minlength=n * n).reshape(n, n)
    np.fill_diagonal(counts, -1)
    best = np.argsort(-counts, axis=1, kind="stable")[:, :2]
    return {str(names[row]): (_type(str(names[a])), _type(str(names[b]))) for row, (a, b) in enumerate(best)}


def _type(category: str) -> str:
    return category.partition(" > ")[2].lower()


def _tier(brand: str) -> int:
    """The shop has no prices: that a brand is 0 low-priced, 1 in between, 2 premium, is made up here."""
    return text_number(brand) % 3


def _department_facts(categories: Sequence[str]) -> dict[str, str]:
    """The departments that most items are of, and whether the newest one is not that of most items before."""
    departments = [category.partition(" > ")[0] for category in categories]
    first, *others = _most_common(departments)
    before = _most_common(departments[: -(len(departments) // 3) or None])[0]
    now = departments[-1]
    known = {"department": first, "now": now} | ({"same": now} if before == now else {"before": before})
    return known | ({"second": others[0]} if others else {})


def _type_facts(categories: Sequence[str], after: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    follows, follows2 = after[categories[-1]]
    known = {"type": _type(categories[-1]), "follows": follows, "follows2": follows2}
    return known | ({"earlier_type": _type(categories[-2])} if len(categories) > 1 else {})


def _brand_facts(brands: Sequence[str]) -> dict[str, str]:
    """The brand that is bought most, or how many there are if all are different."""
    distinct = len(set(brands))
    if distinct < len(brands):
        return {"brand": _most_common(brands)[0]}
    return {"labels": str(distinct)} if distinct > 1 else {}


def _series_facts(title: str) -> dict[str, str]:
    """The series that a title belongs to, its volume and the next one; nothing for other titles."""
    match = _VOLUME.fullmatch(title.replace(": Expansion", ", Expansion"))
    if not match:
        return {}
    kind, number = match["kind"], int(match["number"])
    return {"series": match["series"], "volume": f"{kind} {number}", "next_volume": f"{kind} {number + 1}"}


def _most_common(values: Sequence[str]) -> list[str]:
    """The distinct values, most frequent first; the newest of equally frequent ones."""
    return [value for value, _ in Counter(reversed(values)).most_common()]
