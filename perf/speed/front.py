"""What the front costs: one server, asked through the front and past it, on its own socket.

python -m perf.speed.front build/shop-bundle build/front --data build/shop

Alone: one request after the other, in turn through the one and the other. Saturated: rounds of each. The client, the
front and the server share the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from genrec.bundle import Bundle
from genrec.reporting.machine import provenance
from genrec.serving.front import Front
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.tuning.load import Client, Outcomes, ready_made
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

RESULTS = "front.json"
DEADLINE_MS = 60_000.0
console = Console(stderr=True, soft_wrap=True)


async def alone(clients: dict[str, Client], seconds: float) -> dict[str, Any]:
    """Milliseconds of requests that are alone, by way."""
    ways, outcomes = list(clients), {way: Outcomes(seconds) for way in clients}
    number, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for way in ways[:: 1 if number % 2 else -1]:
            await clients[way].one(number, outcomes[way], 0.0)
        number += 1
    took = {way: np.array(outcomes[way].took) for way in ways}
    assert not any(outcomes[way].refused for way in ways), outcomes
    found: dict[str, Any] = {
        way: {f"p{at}": float(np.percentile(took[way], at)) for at in (50, 95, 99)} for way in ways
    }
    more = took["front"] - took["past it"]
    return found | {"requests": number, "more_ms": float(np.median(more))}


async def saturated(clients: dict[str, Client], rounds: int, seconds: float) -> dict[str, Any]:
    """Requests a second of each round, by way, and the milliseconds of their percentiles."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in clients}
    for number in range(rounds):
        for way in list(clients)[:: 1 if number % 2 else -1]:
            run = await clients[way].closed(seconds)
            assert not run.refused, run.reasons
            runs[way].append(run.summary())
    found: dict[str, Any] = {}
    for way, of_way in runs.items():
        found[way] = {key: float(np.median([run[key] for run in of_way])) for key in ("goodput", "p50", "p95", "p99")}
        found[way]["goodputs"] = [run["goodput"] for run in of_way]
    pairs = zip(found["front"]["goodputs"], found["past it"]["goodputs"], strict=True)
    return found | {"share": float(np.median([front / past for front, past in pairs]))}


async def measured(urls: dict[str, str], requests: list[bytes], rounds: int, seconds: float) -> dict[str, Any]:
    clients = {way: Client(url, requests, DEADLINE_MS) for way, url in urls.items()}
    for client in clients.values():
        await client.closed(1.0)
    found = {"alone": await alone(clients, rounds * seconds), "saturated": await saturated(clients, rounds, seconds)}
    for client in clients.values():
        await client.close()
    return found


def main(
    bundle_path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to serve.")],
    out: Annotated[Path, typer.Argument(help="Folder of `front.json` and the server's log.")],
    data: Annotated[Path, typer.Option(help="Dataset whose test users ask.")],
    rounds: Annotated[int, typer.Option(min=1, help="Of each way.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each round.")] = 4.0,
    users: Annotated[int, typer.Option(min=1, help="Users drawn from the dataset.")] = 200,
    threads: int = 0,
) -> None:
    """Serve a bundle behind the front, and print what that costs."""
    bundle = Bundle(bundle_path)
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    requests = ready_made([bundle.catalog.item_ids[rows] for rows in histories], DEADLINE_MS)
    out.mkdir(parents=True, exist_ok=True)
    deployment = Deployment(threads=threads)
    with (
        Front(*deployment.models) as front,
        serve_bundle(bundle_path, deployment, sockets=front.sockets, log_path=out / "triton.log") as server,
    ):
        urls = {"past it": server.grpc_url, "front": front.grpc_url}
        found = asyncio.run(measured(urls, requests, rounds, seconds))
    console.print_json(json.dumps(found))
    settings = provenance(bundle=bundle_path.name, rounds=rounds, seconds=seconds, load=os.getloadavg()[0])
    (out / RESULTS).write_text(json.dumps(found | {"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
