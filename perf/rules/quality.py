"""Ranking under rules against scoring every allowed item with the same model, and against drafts that are only checked.

python -m perf.rules.quality build/rules/bundle build/rules/shop build/rules --items 1000000 --users 300

Exhaustive is a beam of the PyTorch engine that is as wide as there are allowed semantic IDs. What is right is the item
that a user took next; rules leave it and what is like it.
"""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import CHECKPOINT, Bundle
from genrec.catalog import Column
from genrec.engines.torch import TorchEngine
from genrec.pipeline import Pipeline, Recommendation
from genrec.reporting.machine import provenance
from genrec.rules import bind, parse
from genrec.rules.narrowing import Narrowing
from genrec.rules.scan import allowed_rows
from genrec.verifier import DRAFTED
from perf.rules.crossing import gain
from perf.rules.shop import RULE_BYTES, BundlePath, Data, Items, Out, Shop, request

RESULTS = "quality.json"
WAYS = ("exhaustive", "pushed down", "only checked")
console = Console(width=150)


def rules_for(shop: Shop, item: int) -> dict[str, dict[str, Any]]:
    """Conditions that leave an item, a row of the bundle, and what is like it."""
    columns = shop.bundle.catalog.columns
    price = float(columns["price"].values[item])
    category = {"attribute": "category", "is": _text(columns["category"], item)}
    return {
        "category": category,
        "brand": {"attribute": "brand", "is": _text(columns["brand"], item)},
        "price, 2 % around": {"attribute": "price", ">=": 0.98 * price, "<=": 1.02 * price},
        "category, price 20 % around": {
            "all": [category, {"attribute": "price", ">=": 0.8 * price, "<=": 1.2 * price}],
        },
    }


def _text(column: Column, item: int) -> str:
    word: bytes = column.words[column.values[item] - 1]
    return word.decode()


def compare(shop: Shop, users: int, most_codes: int) -> dict[str, dict[str, Any]]:
    """Of each rule: NDCG@10 of every way, and how many of the ten best are the same as the exhaustive ones.

    most_codes: allowed semantic IDs of the widest beam; users whose rules leave more are left out.
    """
    space, ids = shop.bundle.space, shop.bundle.catalog.item_ids
    engine = shop.engine()
    masks = shop.masks
    exhaustive = TorchEngine(shop.bundle.path / CHECKPOINT, masks, 1, "cpu", rule_bytes=RULE_BYTES)
    ways: dict[str, Pipeline] = {
        "exhaustive": shop.pipeline(
            exhaustive, Narrowing(space, exhaustive.rule_masks, wide=2.0, most_rows=1 << 40, making=1.0)
        ),
        "pushed down": shop.pipeline(
            engine, Narrowing(space, engine.rule_masks, wide=2.0, most_rows=1 << 40, making=1.0)
        ),
        "only checked": shop.pipeline(engine, Narrowing(space, None)),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for user in shop.users(users):
        target = ids[user.target].decode()
        for name, where in rules_for(shop, user.target).items():
            codes = _codes(shop, where)
            if codes > most_codes:
                continue
            exhaustive.beam_width = space.beams(round(1.05 * codes) + 64)  # a mask may allow some codes more
            answers = {way: pipeline.answer([request(user, where)])[0] for way, pipeline in ways.items()}
            best = answers["exhaustive"].item_ids[:10]
            row = found.setdefault(name, {key: [] for key in ("codes", *WAYS, *(f"{way}, same" for way in WAYS))})
            row["codes"].append(codes)
            for way, answer in answers.items():
                row[way].append(gain(_drafted(answer), target))
                row[f"{way}, same"].append(len({*_drafted(answer)} & {*best}) / max(1, len(best)))
    return {name: _summary(row) for name, row in found.items()}


def _drafted(answer: Recommendation) -> list[str]:
    """Items in their places; what the fallback brings counts as well."""
    assert (np.diff(answer.source) >= 0).all() and DRAFTED == 0  # drafts first
    return answer.item_ids[:10]


def _codes(shop: Shop, where: dict[str, Any]) -> int:
    rule = bind(parse(json.dumps({"where": where})), shop.version.kinds).filter
    return int(np.unique(shop.version.codes_of(allowed_rows(shop.version, [rule]))).size)


def _summary(row: dict[str, list[float]]) -> dict[str, Any]:
    means = {name: float(np.mean(values)) for name, values in row.items()}
    ratios = {f"{way}, ratio": means[way] / max(1e-9, means["exhaustive"]) for way in WAYS}
    # Standard error of the difference of the means, users paired.
    errors = {
        f"{way}, error": float(np.std(np.subtract(row[way], row["exhaustive"])) / np.sqrt(len(row[way])))
        for way in WAYS
    }
    return {"users": len(row["codes"]), **means, **ratios, **errors}


def main(
    bundle: BundlePath,
    data: Data,
    out: Out,
    items: Items = 20_000,
    users: Annotated[int, typer.Option(min=1)] = 20,
    most_codes: Annotated[int, typer.Option(help="Allowed semantic IDs of a rule that is compared.")] = 40_000,
) -> None:
    """Print and write `quality.json`."""
    shop = Shop(Bundle(bundle), data, out, items)
    runs = compare(shop, users, most_codes)
    table = Table("rule", "users", "codes", *(f"NDCG@10, {way}" for way in WAYS), "ratio", "checked", "same", "checked")
    for name, one in runs.items():
        gains = [f"{one[way]:.4f}" for way in WAYS]
        ratios = [f"{one[f'{way}, ratio']:.4f}" for way in WAYS[1:]]
        same = [f"{one[f'{way}, same']:.3f}" for way in WAYS[1:]]
        table.add_row(name, f"{one['users']}", f"{one['codes']:,.0f}", *gains, *ratios, *same)
    console.print(table)
    path = out / RESULTS
    kept = json.loads(path.read_text()) if path.exists() else {}
    settings = provenance(items=items, users=users, load=os.getloadavg()[0])
    path.write_text(json.dumps(kept | {f"{items}": {"settings": settings, "runs": runs}}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
