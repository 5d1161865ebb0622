"""What rules cost through a real server over a live catalogue: known ones, many in rotation, and while it changes.

python -m perf.rules.served build/rules/bundle build/rules/shop build/rules --items 1000000 --seconds 40 --rounds 40
python -m perf.rules.served build/rules/bundle build/rules/shop build/rules --items 10000000 --only known,rotation
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.live.store import CatalogStore
from genrec.reporting.machine import provenance
from genrec.reporting.timing import median_ratio
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec_client import AsyncRecommender, Recommendations, Recommender
from perf.rules.changing import Answer, Checked, changing
from perf.rules.shop import BundlePath, Data, Items, Out, Shop, Windows, quantiles

RESULTS = "served.json"
AT_ONCE = 16
console = Console(stderr=True, soft_wrap=True)
Rule = dict[str, Any] | None


@dataclass
class Bench:
    """A server over a grown shop. histories: of users, item ids. windows: conditions by share."""

    shop: Shop
    url: str
    store: CatalogStore
    root: Path
    histories: list[list[str]]
    windows: Windows
    rounds: int
    seconds: float
    memory_mb: int
    warm: int

    def rules(self) -> dict[str, Rule]:
        """Usual rules by their names; the first is none."""
        narrow, wide = self.windows.unrelated(0, 0.01), self.windows.unrelated(0, 0.9)
        denied = [item_id.decode() for item_id in self.shop.bundle.catalog.item_ids[:5].tolist()]
        full = {"where": narrow, "at_most": [{"attribute": "brand", "items": 2}], "deny": denied}
        boost = {"boost": [{"where": {"attribute": "price", "<": 20}, "add": 0.5}]}
        return {
            "none": None,
            "leaves 1 %": {"where": narrow},
            "leaves 90 %": {"where": wide},
            "leaves 1 %, at_most, deny": full,
            "leaves 1 %, boost": {"where": narrow} | boost,
        }


def known(bench: Bench) -> dict[str, Any]:
    """One request at a time, each user with every rule in turn: milliseconds, and ratios of pairs."""
    rules = bench.rules()
    spent: dict[str, list[float]] = {name: [] for name in rules}
    names = list(rules)
    with Recommender(bench.url, timeout_s=60.0) as client:
        for number in range(-1, bench.rounds):
            for at, history in enumerate(bench.histories):
                for turn in range(len(names)):  # each is first as often as the others
                    name = names[(number + at + turn) % len(names)]
                    began = time.perf_counter()
                    client.recommend(history, top_k=10, rules=rules[name])
                    if number >= 0:
                        spent[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: quantiles(each)
        | {
            "p50_ratio": float(np.median(each) / np.median(spent["none"])),
            "pairs_ratio": median_ratio(each, spent["none"]),
        }
        for name, each in spent.items()
    }


async def closed(bench: Bench, rule: Rule, seconds: float) -> float:
    """Requests a second of AT_ONCE users, each of whom asks again at once."""
    async with AsyncRecommender(bench.url, timeout_s=60.0) as client:
        ends, count = time.perf_counter() + seconds, 0

        async def user(at: int) -> None:
            nonlocal count
            while time.perf_counter() < ends:
                await client.recommend(bench.histories[at % len(bench.histories)], top_k=10, rules=rule)
                count, at = count + 1, at + AT_ONCE

        await asyncio.gather(*(user(at) for at in range(AT_ONCE)))
        return count / seconds


def saturated(bench: Bench) -> dict[str, Any]:
    """Requests a second at saturation, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in bench.rules()}
    for _ in range(4):
        for name, rule in bench.rules().items():
            rates[name].append(asyncio.run(closed(bench, rule, bench.seconds / 10)))
    return {name: {"rates": each, "ratio": median_ratio(each, rates["none"])} for name, each in rates.items()}


async def at_rate(bench: Bench, rules: Sequence[Rule], rate: float, seconds: float) -> tuple[list[Answer], int]:
    """Answers of requests that are sent at `rate` a second whatever they take, `rules` in turn; and how many failed."""
    found: list[Answer] = []
    failed = 0

    async def one(client: AsyncRecommender, number: int) -> None:
        nonlocal failed
        history, which = bench.histories[number % len(bench.histories)], number % len(rules)
        began = time.perf_counter()
        try:
            answer: Recommendations = await client.recommend(history, top_k=10, rules=rules[which])
            found.append(Answer(which, 1e3 * (time.perf_counter() - began), answer))
        except Exception:
            failed += 1

    async with AsyncRecommender(bench.url, timeout_s=10.0) as client:
        await asyncio.gather(*(one(client, number) for number in range(4)))
        found.clear()
        tasks, began = [], time.perf_counter()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client, number)))
        await asyncio.gather(*tasks)
    return found, failed


def rotation(bench: Bench, distinct: int = 1000) -> dict[str, Any]:
    """Many rules in turn at half of saturation, against none; and the backbone's memory."""
    rng = np.random.default_rng(3)
    own = len(bench.shop.bundle.catalog)
    shares = 10 ** rng.uniform(-4, -2, distinct)
    rules: list[Rule] = [
        {"where": bench.windows.unrelated(int(item), float(share))}
        for item, share in zip(rng.integers(0, own, distinct), shares, strict=True)
    ]
    rate, before = asyncio.run(closed(bench, None, bench.seconds / 5)) / 2, _backbone_mb()
    first, lost = asyncio.run(at_rate(bench, rules, rate, distinct / rate))
    for _ in range(bench.warm):
        asyncio.run(at_rate(bench, rules, rate, distinct / rate))
    runs: dict[str, list[dict[str, float]]] = {"none": [], "rules": []}
    for _ in range(3):
        for name, each in (("none", [None]), ("rules", rules)):
            answers, failed = asyncio.run(at_rate(bench, each, rate, max(bench.seconds / 2, distinct / rate)))
            runs[name].append(quantiles([one.ms for one in answers]))
            lost += failed
            console.print(f"{name}: {runs[name][-1]}")
    ratios = {
        at: median_ratio([one[at] for one in runs["rules"]], [one[at] for one in runs["none"]])
        for at in runs["none"][0]
    }
    memory = {"before_mb": before, "after_mb": _backbone_mb(), "limit_mb": bench.memory_mb}
    made = quantiles([one.ms for one in first])
    return {
        "rules": distinct,
        "rate": rate,
        "first_time": made,
        "runs": runs,
        "ratios": ratios,
        "failed": lost,
        **memory,
    }


def changes(bench: Bench, per_second: int = 1000) -> dict[str, Any]:
    """With and without rules while prices and stock change; every answer against the version that it names."""
    checked = Checked(bench.shop, per_second)
    rules: list[Rule] = [None, {"where": checked.where}]
    rate, found = asyncio.run(closed(bench, rules[1], bench.seconds / 5)) / 2, {}
    answers: list[Answer] = []
    for name in ("steady", "changing"):
        if name == "changing":
            with changing(bench.store, checked):
                own, failed = asyncio.run(at_rate(bench, rules, rate, bench.seconds))
        else:
            own, failed = asyncio.run(at_rate(bench, rules, rate, bench.seconds))
        answers += own
        spent = [[one.ms for one in own if one.rule == which] for which in range(2)]
        found[name] = {"none": quantiles(spent[0]), "rules": quantiles(spent[1]), "failed": failed}
        console.print(f"{name}: {found[name]}")
    return {"changes_a_second": per_second, "rate": rate, **found} | checked.verdict(
        [one for one in answers if one.rule]
    )


def _backbone_mb() -> float:
    """Memory of the processes that draft, MB."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().split("\0")
            if "stub" in command[0] and any("/backbone/" in word for word in command):
                rows = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
                total += sum(int(rows[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
        except OSError:
            continue
    return total / 1024


def live_store(shop: Shop) -> CatalogStore:
    """A store of the grown shop at version 0."""
    location = shop.folder / f"store-{shop.items}"
    if location.exists():
        store = CatalogStore.open(str(location))
        if store.latest() == 0:
            return store
        shutil.rmtree(location)
    CatalogStore.create(str(location), shop.bundle.space, shop.parts(), kinds=shop.bundle.catalog.kinds)
    return CatalogStore.open(str(location))


def main(
    bundle: BundlePath,
    data: Data,
    out: Out,
    items: Items = 20_000,
    only: Annotated[str, typer.Option(help="Of known, saturated, rotation, changes; all by default.")] = "",
    users: Annotated[int, typer.Option(min=1, help="Whose histories are asked with.")] = 20,
    rounds: Annotated[int, typer.Option(help="One request at a time.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of a run.")] = 10.0,
    distinct: Annotated[int, typer.Option(help="Rules in rotation.")] = 1000,
    memory_mb: Annotated[int, typer.Option(help="For the masks of rules.")] = Deployment().rules_memory_mb,
    warm: Annotated[int, typer.Option(help="Times that all rules were asked for before, and once.")] = 0,
) -> None:
    """Serve the grown shop, measure, and write `served.json`."""
    shop = Shop(Bundle(bundle), data, out, items)
    windows, store, root = Windows(shop), live_store(shop), out / f"published-{items}"
    live = LiveCatalog(str(out / f"store-{items}"), root)
    deployment = Deployment(threads=1, timeout_ms=10_000, rules_memory_mb=memory_mb)
    with serve_bundle(bundle, deployment, live, log_path=out / "triton.log") as server:
        histories = [[item_id.decode() for item_id in user.history] for user in shop.users(users)]
        bench = Bench(shop, server.grpc_url, store, root, histories, windows, rounds, seconds, memory_mb, warm)
        scenarios: dict[str, Callable[[], dict[str, Any]]] = {
            "known": lambda: known(bench),
            "saturated": lambda: saturated(bench),
            "rotation": lambda: rotation(bench, distinct),
            "changes": lambda: changes(bench),
        }
        path = out / RESULTS
        for name, scenario in scenarios.items():
            if only and name not in only.split(","):
                continue
            console.rule(name)
            load = os.getloadavg()[0]
            settings = provenance(items=items, users=users, rounds=rounds, seconds=seconds, load=load)
            kept = json.loads(path.read_text()) if path.exists() else {}
            kept[f"{name}-{items}"] = scenario() | {"settings": settings}
            path.write_text(json.dumps(kept, indent=1) + "\n")
            console.print(json.dumps({k: v for k, v in kept[f"{name}-{items}"].items() if k != "settings"})[:3000])


if __name__ == "__main__":
    typer.run(main)
