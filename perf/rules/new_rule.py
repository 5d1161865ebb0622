"""What a new rule takes once, by the items of the catalogue and by those that it leaves, and where the time goes.

python -m perf.rules.new_rule build/rules/bundle build/rules/shop build/rules --items 1000000
python -m perf.rules.new_rule build/rules/bundle build/rules/shop build/rules --items 10000000 --rounds 9
"""

from __future__ import annotations

import json
import os
import time
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.catalog import RuleMasks
from genrec.reporting.machine import provenance
from genrec.reporting.timing import in_turn
from genrec.rules import bind, parse
from genrec.rules.narrowing import MOST_ROWS, Narrowing
from genrec.rules.scan import allowed_rows, share_of
from perf.rules.shop import RULE_BYTES, BundlePath, Data, Items, Out, Shop, Windows, quantiles

RESULTS = "new_rule.json"
STEPS = ("sample", "scan", "codes", "mask")
SHOPS_RULES: dict[str, dict[str, Any]] = {
    "price": {"attribute": "price", "<": 6},
    "stock": {"attribute": "in_stock", "is": False},
    "market": {"attribute": "markets", "is": "jp"},
    "all": {
        "all": [
            {"attribute": "price", "<": 20},
            {"attribute": "in_stock", "is": True},
            {"attribute": "markets", "is": "jp"},
            {"attribute": "released", ">=": "2025-01-01"},
        ]
    },
}
console = Console(width=150)


def spent_on(shop: Shop, where: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of each step, of all as they are done for a request, and of the same where very many may be left."""
    view, space = shop.version, shop.bundle.space
    rule = bind(parse(json.dumps({"where": where})), view.kinds).filter
    filters = frozenset([rule])
    arena = RuleMasks(space, RULE_BYTES, shop.masks.following())
    steps: dict[str, list[float]] = {name: [] for name in STEPS}
    found: dict[str, Any] = {}

    def apart() -> list[float]:
        moments = [time.perf_counter()]
        share_of(view, [rule])
        moments.append(time.perf_counter())
        rows = allowed_rows(view, [rule], exact=False)
        moments.append(time.perf_counter())
        codes = Narrowing(space, None)._codes(view, rows)
        moments.append(time.perf_counter())
        mask = arena.build(codes)
        moments.append(time.perf_counter())
        assert mask is not None, "the memory of the masks is too small"
        found.update(allowed=rows.size, distinct=codes.size, mask_bytes=arena.used_bytes)
        arena.free(mask)
        return [1e3 * one for one in np.diff(moments)]

    def whole(most_rows: int) -> float:
        began = time.perf_counter()
        Narrowing(space, arena, most_rows=most_rows).of_batch(view, 0, [filters])
        took = 1e3 * (time.perf_counter() - began)
        _clear(arena)
        return took

    calls = {"apart": apart, "as served": lambda: whole(MOST_ROWS), "pushed down": lambda: whole(1 << 40)}
    times: dict[str, list[Any]] = in_turn(calls, rounds, lambda call: call())
    for name, one in zip(STEPS, zip(*times.pop("apart"), strict=True), strict=True):
        steps[name] = list(one)
    return found | {name: quantiles(each) for name, each in {**steps, **times}.items()}


def _clear(arena: RuleMasks) -> None:
    """Give back all rows."""
    arena._starts, arena._ends = [1], [len(arena.bits)]


def rules_of(shop: Shop, allowed: list[int]) -> dict[str, dict[str, Any]]:
    """Conditions by what they are called: by the time of release, for so many items; and a shop's usual ones."""
    windows = Windows(shop)
    counted = {f"{count:,} items": windows.unrelated(0, count / shop.items) for count in allowed}
    return counted | SHOPS_RULES


def main(
    bundle: BundlePath,
    data: Data,
    out: Out,
    items: Items = 100_000,
    allowed: Annotated[
        str, typer.Option(help="Items that rules leave.")
    ] = "100,1000,10000,100000,300000,1000000,3000000",
    rounds: int = 5,
) -> None:
    """Print milliseconds of every step, p50, and write `new_rule.json`."""
    shop = Shop(Bundle(bundle), data, out, items)
    codes = int(np.unique(shop.version.base.codes).size)
    table = Table("rule", "allowed", "codes", *(f"{name} ms" for name in (*STEPS, "as served", "pushed down")), "bytes")
    rules, runs = rules_of(shop, [one for one in map(int, allowed.split(",")) if one <= items]), {}
    for name, where in rules.items():
        runs[name] = found = spent_on(shop, where, rounds)
        spent = [f"{found[step]['p50']:.2f}" for step in (*STEPS, "as served", "pushed down")]
        table.add_row(name, f"{found['allowed']:,}", f"{found['distinct']:,}", *spent, f"{found['mask_bytes']:,}")
    console.print(table)
    path = out / RESULTS
    kept = json.loads(path.read_text()) if path.exists() else {}
    settings = provenance(items=items, codes=codes, rounds=rounds, load=os.getloadavg()[0])
    path.write_text(json.dumps(kept | {f"{items}": {"settings": settings, "runs": runs}}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
