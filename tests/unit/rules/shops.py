"""Small shops with attributes, random rules for them, and what the rules mean, item by item."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from genrec.catalog import Catalog, Columns, ItemIndex, SemanticIdSpace

SPACE = SemanticIdSpace((6, 6, 6))
KINDS = {
    "category": "string",
    "price": "number",
    "in_stock": "boolean",
    "released": "timestamp",
    "markets": "strings",
}
CATEGORIES, MARKETS = ["shoes", "bags", "hats", "größe"], ["de", "fr", "us", "jp"]
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Shop:
    """Items with attributes, of which any may be absent."""

    def __init__(self, rng: np.random.Generator, items: int, space: SemanticIdSpace = SPACE) -> None:
        self.rng, self.space = rng, space
        self.attributes: dict[str, list[Any]] = {
            "category": [self._one(CATEGORIES) for _ in range(items)],
            "price": [self._one([1.0, 2.5, 10.0, 49.99]) for _ in range(items)],
            "in_stock": [self._one([True, False]) for _ in range(items)],
            "released": [self._one([START + timedelta(days=day) for day in range(5)]) for _ in range(items)],
            "markets": [[market for market in MARKETS if rng.random() < 0.4] for _ in range(items)],
        }
        available = rng.random(items) < 0.8
        available[rng.integers(items)] = True
        self.ids = [f"item-{number}" for number in range(items)]
        self.catalog = Catalog.build(
            self.ids,
            rng.integers(0, space.levels, (items, space.depth)),
            rng.integers(0, 5, items),
            available,
            Columns.of_values(KINDS, self.attributes),
        )
        self.index = ItemIndex.build(space, self.catalog)

    def _one(self, values: list[Any]) -> Any:
        return None if self.rng.random() < 0.15 else values[self.rng.integers(len(values))]

    def item(self, row: int) -> dict[str, Any]:
        return {name: values[row] for name, values in self.attributes.items()}

    def condition(self, depth: int = 2) -> dict[str, Any]:
        """A random condition in the form of JSON."""
        rng = self.rng
        if depth and rng.random() < 0.5:
            form = rng.choice(["all", "any", "not"])
            if form == "not":
                return {"not": self.condition(depth - 1)}
            return {str(form): [self.condition(depth - 1) for _ in range(rng.integers(1, 4))]}
        name = str(rng.choice(list(KINDS)))
        values = {
            "category": [*CATEGORIES, "unheard of"],
            "markets": [*MARKETS, "xx"],
            "price": [0, 1, 2.5, 10, 49.99, 50],
            "in_stock": [True, False],
            "released": [(START + timedelta(days=day)).isoformat() for day in range(-1, 6)],
        }[name]
        if KINDS[name] in ("number", "timestamp") and rng.random() < 0.6:
            operators = rng.choice(["<", "<=", ">", ">="], rng.integers(1, 3), replace=False)
            return {"attribute": name} | {str(one): values[rng.integers(len(values))] for one in operators}
        operator = str(rng.choice(["is", "in", "not_in"]))
        if operator == "is":
            return {"attribute": name, "is": values[rng.integers(len(values))]}
        return {"attribute": name, operator: [values[at] for at in rng.integers(0, len(values), rng.integers(1, 7))]}

    def rules(self) -> dict[str, Any]:
        """Random rules in the form of JSON."""
        rng, rules = self.rng, {}
        if rng.random() < 0.7:
            rules["where"] = self.condition()
        if rng.random() < 0.3:
            rules["allow"] = [*rng.choice(self.ids, rng.integers(0, len(self.ids) + 1)), "no such item"]
        if rng.random() < 0.3:
            rules["deny"] = [str(one) for one in rng.choice(self.ids, 3)]
        if rng.random() < 0.5:
            names = rng.choice(["category", "price", "in_stock", "released"], rng.integers(1, 3), replace=False)
            rules["at_most"] = [{"attribute": str(name), "items": int(rng.integers(1, 4))} for name in names]
        if rng.random() < 0.4:
            rules["boost"] = [
                {"where": self.condition(1), "add": float(rng.choice([-3, -0.5, 0.25, 2]))},
                {"attribute": "price", "times": float(rng.choice([0.01, -0.1]))},
            ][: rng.integers(1, 3)]
        if rng.random() < 0.5:
            rules["bucket_order"] = [
                "popularity",
                {"highest": "price"},
                {"lowest": "released"},
                {"rotate": int(rng.integers(1000))},
            ][rng.integers(4)]
        return json.loads(json.dumps(rules, default=str))


def holds(condition: dict[str, Any], item: dict[str, Any]) -> bool:
    """What a condition means for an item."""
    if "all" in condition:
        return all(holds(one, item) for one in condition["all"])
    if "any" in condition:
        return any(holds(one, item) for one in condition["any"])
    if "not" in condition:
        return not holds(condition["not"], item)
    name = condition["attribute"]
    value, kind = item[name], KINDS[name]
    values = [] if value is None else value if kind == "strings" else [value]

    def read(told: Any) -> Any:
        return datetime.fromisoformat(told) if kind == "timestamp" else told

    tests = {
        "is": lambda told: read(told) in values,
        "in": lambda told: any(read(one) in values for one in told),
        "not_in": lambda told: not any(read(one) in values for one in told),
        "<": lambda told: any(own < read(told) for own in values),
        "<=": lambda told: any(own <= read(told) for own in values),
        ">": lambda told: any(own > read(told) for own in values),
        ">=": lambda told: any(own >= read(told) for own in values),
    }
    return all(tests[operator](told) for operator, told in condition.items() if operator != "attribute")


def allowed(rules: dict[str, Any], shop: Shop, row: int) -> bool:
    """Whether rules leave an item."""
    item_id = shop.ids[row]
    return (
        ("allow" not in rules or item_id in rules["allow"])
        and item_id not in rules.get("deny", [])
        and ("where" not in rules or holds(rules["where"], shop.item(row)))
    )
