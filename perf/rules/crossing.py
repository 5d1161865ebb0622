"""Rules pushed down into the beam against drafts that are only checked: full answers, ranking, time, by what is left.

python -m perf.rules.crossing build/rules/bundle build/rules/shop build/rules --items 1000000 --users 200
python -m perf.rules.crossing build/rules/bundle build/rules/shop build/rules --items 10000000 --users 100 \
    --shares 0.00001,0.0001,0.001,0.01,0.03,0.1

An answer is full if it has ten items and none of them is from the fallback. Rules are around the item that a user took
next: by the time of release, which has nothing to do with taste, or by category, which has. Those of other categories
leave what the user will not take: then nothing is right, and only full answers and time say anything.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.pipeline import Pipeline
from genrec.reporting.machine import provenance
from genrec.reporting.page import COLOURS, save_figure, tidy
from genrec.rules.narrowing import Narrowing
from genrec.verifier import DRAFTED
from perf.rules.shop import BundlePath, Data, Items, Out, Shop, User, Windows, quantiles, request

RESULTS = "crossing.json"
WAYS = ("pushed down", "only checked")
KINDS = {"unrelated": "by time of release", "related": "the item's category", "unlike": "other categories"}
console = Console(width=150)


def gain(ids: list[str], target: str) -> float:
    """NDCG@10 of one answer with one right item."""
    return 1 / float(np.log2(2 + ids.index(target))) if target in ids[:10] else 0.0


def measured(pipeline: Pipeline, user: User, where: dict[str, Any], target: str) -> dict[str, float]:
    """One user's answer, once the rule is known; milliseconds of that, and of the first time."""
    asked = [request(user, where)]
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        answer = pipeline.answer(asked)[0]
        spent.append(1e3 * (time.perf_counter() - began))
    drafted = int((answer.source == DRAFTED).sum())
    return {
        "full": drafted == 10,
        "drafted": drafted,
        "ndcg": gain(answer.item_ids, target),
        "ms": spent[1],
        "new": spent[0],
    }


def compare(shop: Shop, users: list[User], shares: list[float], most: int) -> list[dict[str, Any]]:
    """Every kind of rule, share and way. most: allowed items that a mask is made of in this measurement."""
    windows, engine = Windows(shop), shop.engine()
    space, ids = shop.bundle.space, shop.bundle.catalog.item_ids
    pipelines = {
        "pushed down": shop.pipeline(
            engine, Narrowing(space, engine.rule_masks, wide=2.0, most_rows=1 << 40, making=1.0)
        ),
        "only checked": shop.pipeline(engine, Narrowing(space, None)),
    }
    plain = [request(user, None) for user in users]
    for one in plain[:20]:
        pipelines["pushed down"].answer([one])
    began = time.perf_counter()
    for one in plain:
        pipelines["pushed down"].answer([one])
    without = 1e3 * (time.perf_counter() - began) / len(plain)
    console.print(f"without rules: {without:.2f} ms on average")
    found = []
    for kind in KINDS:
        for share in shares:
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            # Wide masks take long to make: fewer users then.
            for user in users if share * shop.items < most else users[: max(5, len(users) // 5)]:
                where, target = getattr(windows, kind)(user.target, share), ids[user.target].decode()
                for way, pipeline in pipelines.items():
                    runs[way].append(measured(pipeline, user, where, target))
            for way, each in runs.items():
                means = {name: float(np.mean([one[name] for one in each])) for name in ("full", "drafted", "ndcg")}
                times = {name: quantiles([one[name] for one in each]) for name in ("ms", "new")}
                found.append({"kind": kind, "share": share, "way": way, "users": len(each), **means, **times})
                console.print({k: v for k, v in found[-1].items() if k != "new"})
    return found


def figure(found: list[dict[str, Any]]) -> Figure:
    """Full answers, NDCG@10 and time against the share that rules leave."""
    made = Figure(figsize=(9.6, 7.6), layout="constrained")
    panels = made.subplots(len(KINDS), 3, sharex=True, sharey="col")
    titles = ("full answers, %", "NDCG@10", "ms of an answer, p50")
    for row, (kind, words) in enumerate(KINDS.items()):
        for way, colour in zip(WAYS, COLOURS, strict=False):
            own = [one for one in found if one["kind"] == kind and one["way"] == way]
            shares = [100 * one["share"] for one in own]
            values = [100 * one["full"] for one in own], [one["ndcg"] for one in own], [one["ms"]["p50"] for one in own]
            for axes, each in zip(panels[row], values, strict=True):
                axes.plot(shares, each, "o-", color=colour, markersize=4, linewidth=1.5, label=way)
        for axes, title in zip(panels[row], titles, strict=True):
            axes.set_xscale("log")
            axes.set_title(f"{title}, {words}", fontsize=9)
            axes.set_xlabel("items that the rule leaves, %" if row + 1 == len(KINDS) else "")
            tidy(axes)
    panels[0][2].set_ylim(bottom=0)
    panels[-1][1].remove()  # nothing is right there
    panels[-2][1].tick_params(labelbottom=True)
    panels[0][0].legend(frameon=False, fontsize=9)
    return made


def main(
    bundle: BundlePath,
    data: Data,
    out: Out,
    items: Items = 20_000,
    users: Annotated[int, typer.Option(min=1)] = 20,
    shares: Annotated[str, typer.Option(help="Of the items, that rules leave.")] = (
        "0.00001,0.00003,0.0001,0.0003,0.001,0.003,0.01,0.03,0.1,0.3,0.5,0.9"
    ),
    most: Annotated[int, typer.Option(help="Allowed items above which a fifth of the users is asked.")] = 200_000,
    plot: Annotated[Path | None, typer.Option(help="Folder for `rules-crossing.svg`.")] = None,
) -> None:
    """Print and write `crossing.json`."""
    shop = Shop(Bundle(bundle), data, out, items)
    wanted = [share for share in map(float, shares.split(",")) if share * items >= 10]
    found = compare(shop, shop.users(users), wanted, most)
    table = Table("rule", "leaves", "way", "full", "drafted", "NDCG@10", "ms p50", "p99", "new: ms p50")
    for one in found:
        figures = f"{one['full']:.3f}", f"{one['drafted']:.2f}", f"{one['ndcg']:.4f}", f"{one['ms']['p50']:.2f}"
        more = f"{one['ms']['p99']:.2f}", f"{one['new']['p50']:.2f}"
        table.add_row(one["kind"], f"{100 * one['share']:g} %", one["way"], *figures, *more)
    console.print(table)
    path = out / RESULTS
    kept = json.loads(path.read_text()) if path.exists() else {}
    settings = provenance(items=items, users=users, load=os.getloadavg()[0])
    path.write_text(json.dumps(kept | {f"{items}": {"settings": settings, "runs": found}}, indent=1) + "\n")
    if plot is not None:
        save_figure(figure(found), plot, "rules-crossing")


if __name__ == "__main__":
    typer.run(main)
