"""Goodput under overload: a server gets several times the requests that it can answer, and then half of them again.

python -m perf.speed.overload build/shop-bundle build/overload --data build/shop
python -m perf.speed.overload build/shop-bundle build/overload --data build/shop --deadline-ms 100 --factors 0.7,1.5,5

An answer counts if it came within its deadline. The client shares the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.reporting.machine import provenance
from genrec.serving.front import Front
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.statistics import read_step_counts
from genrec.tuning.load import Client, Outcomes, ready_made
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

RESULTS = "overload.json"
console = Console(stderr=True, soft_wrap=True)


def recovered_after(calm: Outcomes, usual_p99: float) -> float:
    """Seconds after an overload from which on answers take no longer than usual: twice the p99 of a calm run."""
    slow = [sent + took / 1e3 for sent, took in zip(calm.sent, calm.took, strict=True) if took > 2 * usual_p99]
    return max(slow, default=0.0)


async def measured(url: str, requests: list[bytes], deadline_ms: float, factors: list[float], seconds: float) -> Any:
    """Saturation, and each factor of it followed by half of it."""
    patient = Client(url, requests, 60_000.0)
    await patient.closed(2.0)
    saturation = (await patient.closed(seconds)).summary()["goodput"]
    await patient.close()
    client = Client(url, requests, deadline_ms)
    usual = (await client.opened(saturation / 2, seconds)).summary()
    found: dict[str, Any] = {"saturation": saturation, "half": usual, "factors": {}}
    for factor in factors:
        before = read_step_counts(url)
        flood = await client.opened(factor * saturation, seconds)
        steps = {name: counts.since(before[name]) for name, counts in read_step_counts(url).items()}
        calm = await client.opened(saturation / 2, seconds / 3)
        found["factors"][f"{factor:g}"] = flood.summary() | {
            "share_of_saturation": flood.summary()["goodput"] / saturation,
            "recovered_after_s": recovered_after(calm, usual["p99"]),
            "refused_afterwards": len(calm.refused) + calm.late,
            "steps": {
                name: {"batch": one.batch} | {f"{key}_ms": one.mean_ms(key) for key in ("total", "queue", "infer")}
                for name, one in steps.items()
            },
        }
    await client.close()
    return found


def main(
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve.")],
    out: Annotated[Path, typer.Argument(help="Folder of `overload.json` and the server's log.")],
    data: Annotated[Path, typer.Option(help="Dataset whose test users ask.")],
    deadline_ms: Annotated[float, typer.Option(min=1, help="Of each request.")] = 200.0,
    factors: Annotated[str, typer.Option(help="Times saturation, comma-separated.")] = "0.7,1,1.5,5",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each run.")] = 15.0,
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the dataset.")] = 200,
    engine: str = "onnx",
    threads: int = 0,
    instances: int = 1,
    front: Annotated[bool, typer.Option(help="Through HAProxy, as `genrec serve` has it.")] = False,
) -> None:
    """Serve a bundle, flood it, and print what came in time."""
    bundle = Bundle(bundle_path)
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    requests = ready_made([bundle.catalog.item_ids[rows] for rows in histories], deadline_ms)
    out.mkdir(parents=True, exist_ok=True)
    deployment = Deployment(engine=engine, threads=threads, instances=instances)
    wanted = [float(factor) for factor in factors.split(",")]
    with ExitStack() as running:
        before = running.enter_context(Front("recommend", log_path=out / "haproxy.log")) if front else None
        sockets = before.sockets if before else None
        served = serve_bundle(bundle_path, deployment, sockets=sockets, log_path=out / "triton.log")
        server = running.enter_context(served)
        found = asyncio.run(measured((before or server).grpc_url, requests, deadline_ms, wanted, seconds))
    table = Table("offered", "goodput", "of saturation", "p50 ms", "p99", "late", "refused", "after ms", "recovered s")
    for run in found["factors"].values():
        cells = [run["offered"], run["goodput"], run["share_of_saturation"], run["p50"], run["p99"], run["late"]]
        cells += [sum(run["refused"].values()), run["refused_p50"], run["recovered_after_s"]]
        table.add_row(*("-" if cell is None else f"{cell:.4g}" for cell in cells))
    console.print(f"saturation: {found['saturation']:.0f} requests a second; half of it: {found['half']}")
    console.print(table)
    settings = provenance(
        bundle=bundle_path.name, deadline_ms=deadline_ms, seconds=seconds, engine=engine, threads=threads or "all",
        instances=instances, front=front, load=os.getloadavg()[0],
    )  # fmt: skip
    (out / RESULTS).write_text(json.dumps(found | {"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
