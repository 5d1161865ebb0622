"""Deployments of one bundle through the whole ensemble: a server for each, asked in turn, alone and beside other work.

python -m perf.speed.engines build/shop-bundle build/engines --data build/shop
python -m perf.speed.engines BUNDLE OUT --data DATA --deployments onnx,onnx:1,onnx:1x2,openvino/bf16,auto --neighbours 1

A deployment is ENGINE[/PRECISION][:THREADS[xINSTANCES]], or "auto", which is what `genrec serve --engine auto` takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.cli.tune import best_deployment
from genrec.reporting.machine import provenance
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.tuning.choices import Wanted
from genrec.tuning.load import AT_ONCE, Client, ready_made
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

RESULTS = "engines.json"
PATIENT_MS = 60_000
_SPELT = re.compile(r"(?P<engine>\w+)(/(?P<precision>\w+))?(:(?P<threads>\d+)(x(?P<instances>\d+))?)?")
console = Console(stderr=True, soft_wrap=True)


def deployment_of(text: str, bundle: Path) -> Deployment:
    """The deployment that is spelt so. Raises ValueError for any other text."""
    if text == "auto":
        return Deployment(**best_deployment(bundle, 0, Wanted(), "latency").model_dump(), timeout_ms=PATIENT_MS)
    spelt = _SPELT.fullmatch(text)
    if spelt is None:
        raise ValueError(f"deployment {text!r}: write ENGINE[/PRECISION][:THREADS[xINSTANCES]]")
    return Deployment(
        engine=spelt["engine"],
        precision=spelt["precision"] or "auto",
        threads=int(spelt["threads"] or 0),
        instances=int(spelt["instances"] or 1),
        timeout_ms=PATIENT_MS,
    )


@contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """Meanwhile other processes compute without a pause."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


async def asked(url: str, requests: list[bytes], users: int, seconds: float) -> dict[str, Any]:
    """What users see who ask again at once."""
    client = Client(url, requests, PATIENT_MS)
    found = (await client.closed(seconds, users)).summary()
    await client.close()
    return {name: found[name] for name in ("p50", "p95", "p99", "goodput")}


def compared(
    bundle: Bundle,
    histories: Sequence[Sequence[bytes]],
    deployments: dict[str, Deployment],
    out: Path,
    rounds: int,
    seconds: float,
    neighbours: Sequence[int] = (0,),
) -> dict[str, Any]:
    """By number of neighbours, of each deployment the median figures alone and at saturation."""
    requests = ready_made(histories, PATIENT_MS)
    loads, names = {"alone": 1, "saturated": AT_ONCE}, list(deployments)
    runs: dict[str, Any] = {str(count): {name: {load: [] for load in loads} for name in names} for count in neighbours}
    with ExitStack() as stack:
        urls = {}
        for name, deployment in deployments.items():
            log = out / f"triton-{re.sub('[^a-z0-9]', '-', name)}.log"
            urls[name] = stack.enter_context(serve_bundle(bundle.path, deployment, log_path=log)).grpc_url
            asyncio.run(asked(urls[name], requests, 1, 1.0))
        for number in range(rounds):
            for count in neighbours:
                with busy(count):
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        for load, users in loads.items():
                            found = asyncio.run(asked(urls[name], requests, users, seconds))
                            runs[str(count)][name][load].append(found)
    return {
        count: {
            name: {
                load: {at: float(np.median([run[at] for run in each])) for at in each[0]} for load, each in one.items()
            }
            for name, one in of_count.items()
        }
        for count, of_count in runs.items()
    }


def main(
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve.")],
    out: Annotated[Path, typer.Argument(help="Folder of `engines.json` and the servers' logs.")],
    data: Annotated[
        Optional[Path],
        typer.Option(help="Dataset whose test users ask; without it, histories as long as the bundle takes them."),
    ] = None,
    deployments: Annotated[str, typer.Option(help="The first is compared with the others.")] = "onnx,openvino",
    neighbours: Annotated[
        int, typer.Option(min=0, help="Also measured beside so many processes that compute without a pause.")
    ] = 0,
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the dataset.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Of all deployments in turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each run.")] = 5.0,
) -> None:
    """Print and write what each deployment takes, and how much faster than the first it is."""
    bundle, names = Bundle(bundle_path), deployments.split(",")
    if data is None:
        rng, most = np.random.default_rng(0), bundle.manifest.prompt.max_history
        test = [rng.choice(len(bundle.catalog), most, replace=False) for _ in range(users)]
    else:
        test, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    histories = [bundle.catalog.item_ids[rows].tolist() for rows in test]
    out.mkdir(parents=True, exist_ok=True)
    served = {name: deployment_of(name, bundle_path) for name in names}
    counts = (0, neighbours) if neighbours else (0,)
    all_found = compared(bundle, histories, served, out, rounds, seconds, counts)
    settings = provenance(
        bundle=bundle_path.name,
        rounds=rounds,
        seconds=seconds,
        deployments={name: str(one) for name, one in served.items()},
        load=os.getloadavg()[0],
    )
    (out / RESULTS).write_text(json.dumps({"settings": settings, "neighbours": all_found}, indent=1) + "\n")
    for count, found in all_found.items():
        table = Table(
            f"{count} neighbours", "alone: p50 / p95 / p99 ms", "gain", f"{AT_ONCE} users: p50 / p95 / p99 ms",
            "requests/s", "gain",
        )  # fmt: skip
        first = found[names[0]]
        for name in names:
            alone, saturated = found[name]["alone"], found[name]["saturated"]
            gains = first["alone"]["p50"] / alone["p50"], saturated["goodput"] / first["saturated"]["goodput"]
            spent = [" / ".join(f"{one[at]:.1f}" for at in ("p50", "p95", "p99")) for one in (alone, saturated)]
            cells = f"{gains[0]:.2f}", spent[1], f"{saturated['goodput']:.1f}", f"{gains[1]:.2f}"
            table.add_row(name, spent[0], *cells)
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
