"""What the size of the catalogue costs: the same backbone over 10 thousand and 10 million items, in turn.

python -m perf.speed.catalog_size build/bench
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from genrec.reporting.machine import provenance
from perf.speed.analyzer import Load
from perf.speed.cells import Cell, cell_bundle, histories
from perf.speed.load import load_test

RESULTS = "catalog-size.json"
CELL = Cell("3M", 20, 4, 128)  # the smaller the backbone, the more anything else would show
console = Console(stderr=True, soft_wrap=True)


def main(
    out: Annotated[Path, typer.Argument(help="Folder of bundles, raw results, and `catalog-size.json`.")],
    sizes: Annotated[str, typer.Option(help="Items, comma-separated.")] = "10000,10000000",
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    requests: Annotated[int, typer.Option(min=10, help="Of one run.")] = 60,
) -> None:
    """Serve every size at once and ask them in turn, one request after the other."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        tests = {}
        for items in map(int, sizes.split(",")):
            bundle = cell_bundle(CELL, "NEZHA", out / "bundles", items)
            raw = out / "raw" / "catalog-size" / str(items)
            tests[f"{items}"] = stack.enter_context(load_test(bundle, histories(CELL, items), raw))
        for number in range(rounds):
            for name, test in tests.items():
                console.print(f"{name} items")
                runs.setdefault(name, []).append(test.analyzer(Load(requests, 1), number))
    settings = provenance(cell=CELL.name, rounds=rounds)
    (out / RESULTS).write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
