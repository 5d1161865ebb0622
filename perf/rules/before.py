"""A request without rules, against a server of a commit that knows none: two servers in turn, one request at a time.

git worktree add build/before cde40f4
python -m perf.rules.before build/before build/rules --rounds 40

Each server runs the code of its own checkout, and a bundle that this makes: random weights, from the same seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.reporting.machine import provenance
from genrec.reporting.timing import median_ratio
from genrec_client import Recommender
from perf.rules.shop import quantiles
from perf.speed.cells import Cell, histories

RESULTS = "before.json"
SIZES = ("3M", "25M")
SERVE = """
import sys
from pathlib import Path
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from perf.speed.cells import Cell, cell_bundle

bundle = cell_bundle(Cell(sys.argv[2], 20, 4, 128), "NEZHA", Path(sys.argv[1]))
log = Path(sys.argv[1]) / "triton.log"
with serve_bundle(bundle.path, Deployment(threads=1, timeout_ms=10000), log_path=log) as server:
    print("serves", server.grpc_url, flush=True)
    sys.stdin.read()
"""
console = Console(stderr=True, soft_wrap=True)


@contextmanager
def serving(checkout: Path, folder: Path, size: str) -> Iterator[str]:
    """The gRPC address of a server that runs the code of a checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    checkout = checkout.resolve()
    environment = {**os.environ, "PYTHONPATH": ":".join(str(checkout / name) for name in ("", "builders", "client"))}
    command = [sys.executable, "-c", SERVE, str(folder.resolve()), size]
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            if line.startswith("serves "):
                break
        else:
            raise RuntimeError(f"the server of {checkout} does not start; see {folder}")
        yield line.split()[1]
        process.stdin.close()


def compare(urls: dict[str, str], asked: list[list[str]], rounds: int) -> dict[str, Any]:
    """Milliseconds of each server, and the ratio of the second to the first."""
    spent: dict[str, list[float]] = {name: [] for name in urls}
    names = list(urls)
    with ExitStack() as stack:
        clients = {name: stack.enter_context(Recommender(url, timeout_s=30.0)) for name, url in urls.items()}
        for number in range(-2, rounds):
            for at, history in enumerate(asked):
                for turn in range(len(names)):
                    name = names[(number + at + turn) % len(names)]
                    began = time.perf_counter()
                    clients[name].recommend(history, top_k=10)
                    if number >= 0:
                        spent[name].append(1e3 * (time.perf_counter() - began))
    first, second = spent.values()
    ratio = float(np.median(second) / np.median(first))
    found: dict[str, Any] = {name: quantiles(each) for name, each in spent.items()}
    return found | {"p50_ratio": ratio, "pairs_ratio": median_ratio(second, first), "requests": len(first)}


def main(
    before: Annotated[Path, typer.Argument(help="A checkout of a commit without rules.")],
    out: Annotated[Path, typer.Argument(help="Folder of bundles and `before.json`.")],
    rounds: Annotated[int, typer.Option(help="Of 32 users each.")] = 5,
    sizes: Annotated[str, typer.Option(help="Backbones.")] = ",".join(SIZES),
) -> None:
    """Print and write `before.json`."""
    here, runs = Path(__file__).resolve().parents[2], {}
    for size in sizes.split(","):
        asked = [[f"item-{row:07d}" for row in rows.tolist()] for rows in histories(Cell(size, 20, 4, 128))]
        with (
            serving(before, out / "before", size) as old,
            serving(here, out / "now", size) as new,
        ):
            runs[size] = compare({"before": old, "now": new}, asked, rounds)
        console.print(size, runs[size])
    commit = subprocess.run(["git", "-C", before, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    settings = provenance(before=commit.stdout.strip(), rounds=rounds, load=os.getloadavg()[0])
    (out / RESULTS).write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
