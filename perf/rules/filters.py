"""Filters of all sizes over the demo shop grown to millions of items: full answers, ranking, and what they cost.

python -m perf.rules.filters build/shop-bundle build/shop build/rules --items 1000000,10000000

In process, batches of one, one ONNX thread. *narrowed*: the beam drafts from the allowed items, as it is served.
*checked*: it drafts from all items, and what the filter does not leave is dropped. *exhaustive*: the PyTorch engine
with a beam as wide as there are allowed semantic IDs, up to a limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import CHECKPOINT
from genrec.catalog.rule_masks import RuleMasks
from genrec.engines import open_engine
from genrec.engines.torch import TorchEngine
from genrec.prompt import Preprocessor, Request
from genrec.reporting.machine import provenance
from genrec.rules import Filter, RuleBook
from genrec.rules.narrowing import Narrowing
from genrec.rules.scan import allowed_rows
from genrec.verifier import DRAFTED, Verifier
from perf.rules.grown import GrownShop, grow

K, WIDEST = 10, 16_384
SHARES = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
console = Console(stderr=True, width=140)


class Bench:
    """One grown shop, and what answers from it."""

    def __init__(self, shop: GrownShop) -> None:
        self.shop, bundle = shop, shop.bundle
        self.engine = open_engine(bundle, "onnx", threads=1, rule_bytes=1 << 28)
        self.engine.set_masks(shop.masks)
        self.book = RuleBook(shop.view.kinds)
        self.verifier = Verifier(shop.view, shop.view)
        self.preprocessor = Preprocessor(shop.view, bundle.layout, bundle.manifest.limits)
        nothing = np.empty(0, object)
        self.prepared = self.preprocessor.prepare([Request(history, nothing, K) for history in shop.histories])
        self.narrowing = Narrowing(bundle.space, self.engine.rule_masks)

    def answers(self, rules: list[dict[str, Any] | None], narrow: bool, engine: Any = None) -> Iterator[tuple]:
        """Of each user: ids, sources, and milliseconds. rules: of each user."""
        drafter, view = engine or self.engine, self.shop.view
        for one, told in zip(self.prepared, rules, strict=True):
            began = time.perf_counter()
            text = b"" if told is None else self.book.read(json.dumps(told).encode())
            filters = self.book.filters(text)
            mask = self.narrowing.of_batch(view, 1, [filters])[0].mask if narrow and filters else None
            drafts = drafter.draft([one.prompt], rules=None if mask is None else [mask])
            applied = self.book.applied(view, text)
            found = self.verifier.verify(drafts.codes, drafts.scores, [one.blocked], np.array([K]), [applied])
            spent = 1e3 * (time.perf_counter() - began)
            yield view.ids_of(found.rows).tolist(), found.source, spent

    def figures(self, rules: list[dict[str, Any] | None], narrow: bool, engine: Any = None) -> dict[str, Any]:
        """What becomes of all users. Rules are known when their time is taken."""
        for _ in self.answers(rules, narrow, engine):
            if engine is None:
                continue
            break
        found = [*self.answers(rules, narrow, engine)]
        gains = [
            1 / np.log2(2 + ids.index(target)) if target in ids else 0.0
            for (ids, _, _), target in zip(found, self.shop.targets, strict=True)
        ]
        full = [(source == DRAFTED).sum() == K for _, source, _ in found]
        spent = [ms for _, _, ms in found]
        return {
            "full": float(np.mean(full)),
            "ndcg": float(np.mean(gains)),
            "p50_ms": float(np.median(spent)),
            "p99_ms": float(np.quantile(spent, 0.99)),
            "answers": [ids for ids, _, _ in found],
        }

    def new_rule(self, rules: dict[str, Any], rounds: int = 5) -> dict[str, float]:
        """Milliseconds that a filter takes when it is new, and the items that it leaves."""
        filters: frozenset[Filter] = self.book.filters(self.book.read(json.dumps(rules).encode()))
        spent, items, size = [], 0, 0
        for _ in range(rounds):
            masks = RuleMasks(self.shop.bundle.space, 1 << 28)
            fresh = Narrowing(self.shop.bundle.space, masks)
            began = time.perf_counter()
            items = fresh.of_batch(self.shop.view, 1, [filters])[0].items
            spent.append(1e3 * (time.perf_counter() - began))
            size = masks.used_bytes
        return {"items": items, "p50_ms": float(np.median(spent)), "bytes": size}


def price_range(shop: GrownShop, share: float) -> list[dict[str, Any] | None]:
    """For each user a range of prices around the target's, which leaves about so many of the items."""
    base = shop.view.base
    prices = np.sort(base.columns["price"].values)
    rules: list[dict[str, Any] | None] = []
    for target in shop.targets:
        row = shop.view.rows_of(np.array([target], object))
        at = np.searchsorted(prices, base.columns["price"].values[row[0]])
        low = int(np.clip(at - share * prices.size / 2, 0, prices.size - 1))
        high = int(np.clip(low + share * prices.size, low, prices.size - 1))
        rules.append({"where": {"attribute": "price", ">=": float(prices[low]), "<=": float(prices[high])}})
    return rules


def overlap(ours: list[list[bytes]], theirs: list[list[bytes]]) -> float:
    """The share of the exhaustive answers' items that are answered."""
    return float(
        np.mean([len({*one} & {*other}) / max(1, len(other)) for one, other in zip(ours, theirs, strict=True)])
    )


def main(
    bundle: Path,
    data: Path,
    out: Path,
    items: Annotated[str, typer.Option(help="Sizes of the grown shop.")] = "1000000",
    users: int = 300,
    shares: Annotated[str, typer.Option(help="Of the items that filters leave.")] = ",".join(map(str, SHARES)),
    exhaustive: Annotated[int, typer.Option(help="Users who are scored exhaustively; 0 for none.")] = 100,
) -> None:
    """Measure filters of each share: by an attribute that says nothing about items, and by the category."""
    out.mkdir(parents=True, exist_ok=True)
    for count in map(int, items.split(",")):
        bench = Bench(grow(bundle, data, count, users))
        shop, filters = bench.shop, list[dict[str, Any]]()
        found = {"provenance": provenance(), "items": count, "users": users, "filters": filters}
        none: list[dict[str, Any] | None] = [None] * users
        categories = shop.view.base.columns["category"]
        kinds: list[tuple[str, float, list[dict[str, Any] | None]]] = [("none", 1.0, none)]
        for share in map(float, shares.split(",")):
            kinds.append(("aisle", share, [{"where": {"attribute": "aisle", "<": share}}] * users))
        for share in (0.001, 0.01, 0.1):
            kinds.append(("price of the target", share, price_range(shop, share)))
        targets = shop.view.rows_of(np.array(shop.targets, object))
        of_target = [categories.words[categories.values[row] - 1].decode() for row in targets.tolist()]
        kinds.append(
            ("category of the target", 0.0, [{"where": {"attribute": "category", "is": name}} for name in of_target])
        )
        table = Table(
            "filter", "share", "items", "new ms", "MB", "full", "full, checked", "ndcg", "checked", "p50", "checked"
        )
        for name, share, rules in kinds:
            row: dict[str, Any] = {"filter": name, "share": share}
            if rules[0] is not None:
                row["new"] = bench.new_rule(rules[0])
            for way, narrow in (("narrowed", True), ("checked", False)):
                row[way] = bench.figures(rules, narrow)
            if exhaustive and name.endswith("target"):
                row["exhaustive"] = exhaustively(bench, rules[:exhaustive], row)
            for way in ("narrowed", "checked"):
                del row[way]["answers"]
            filters.append(row)
            ours, theirs, new = (
                row["narrowed"],
                row["checked"],
                row.get("new", {"items": count, "p50_ms": 0, "bytes": 0}),
            )
            table.add_row(
                name, f"{share:g}", f"{new['items']:,}", f"{new['p50_ms']:.1f}", f"{new['bytes'] / 1e6:.1f}",
                *(f"{one['full']:.3f}" for one in (ours, theirs)), *(f"{one['ndcg']:.4f}" for one in (ours, theirs)),
                *(f"{one['p50_ms']:.2f}" for one in (ours, theirs)),
            )  # fmt: skip
            (out / f"filters-{count}.json").write_text(json.dumps(found, indent=1) + "\n")
            if "exhaustive" in row:
                console.print({"filter": name, "share": share, **row["exhaustive"]})
        console.print(table)


def exhaustively(bench: Bench, rules: list[dict[str, Any] | None], row: dict[str, Any]) -> dict[str, float]:
    """The first users' answers against those of a beam that holds every allowed semantic ID."""
    shop = bench.shop
    most = max(
        np.unique(shop.view.codes_of(allowed_rows(shop.view, [*bench.book.filters(json.dumps(one).encode())]))).size
        for one in rules[:5]
    )
    wide = TorchEngine(shop.bundle.path / CHECKPOINT, shop.masks, min(2 * most, WIDEST), device="cpu", rule_bytes=32)
    wide._rule_masks = bench.engine.rule_masks  # it drafts with the masks that are there already
    part = Bench.__new__(Bench)
    part.__dict__.update(bench.__dict__)
    part.prepared = bench.prepared[: len(rules)]
    part.shop = GrownShop(shop.bundle, shop.view, shop.masks, shop.histories[: len(rules)], shop.targets[: len(rules)])
    found = part.figures(rules, True, wide)
    ours = part.figures(rules, True)
    checked = part.figures(rules, False)
    return {
        "beam": wide.beam_width,
        "ndcg": found["ndcg"],
        "ndcg_narrowed": ours["ndcg"],
        "ndcg_checked": checked["ndcg"],
        "overlap_narrowed": overlap(ours["answers"], found["answers"]),
        "overlap_checked": overlap(checked["answers"], found["answers"]),
    }


if __name__ == "__main__":
    typer.run(main)
