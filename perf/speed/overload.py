"""Goodput under overload: a server gets several times the requests that it can answer, and then half of them again.

python -m perf.speed.overload build/shop-bundle build/overload --data build/shop
python -m perf.speed.overload build/shop-bundle build/overload --data build/shop --deadline-ms 100 --factors 0.7,1.5,5

An answer counts if it came within its deadline. The client shares the machine. It sends ready-made bytes, so that it
takes little of it.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.reporting.machine import provenance
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.statistics import read_step_counts
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out
from genrec_client.request import RecommendRequest
from genrec_client.wire import build_request, set_timeout

RESULTS = "overload.json"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
AT_ONCE = 32  # requests under way at saturation
CHANNELS = 4
console = Console(stderr=True, soft_wrap=True)


@dataclass
class Outcomes:
    """Of the requests of one run. sent, took: seconds since it began, and milliseconds, of answers in time.

    refused: milliseconds of refusals, by their gRPC status. late: answers that came after their deadline.
    """

    seconds: float
    sent: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    late: int = 0
    cores: float = 0.0

    def summary(self) -> dict[str, Any]:
        total = len(self.took) + len(self.refused) + self.late
        return {
            "requests": total,
            "offered": total / self.seconds,
            "goodput": len(self.took) / self.seconds,
            "late": self.late,
            "refused": dict(self.reasons),
            "client_cores": self.cores,
            **{f"p{at}": float(np.percentile(self.took, at)) if self.took else None for at in (50, 95, 99)},
            **{f"refused_p{at}": float(np.percentile(self.refused, at)) if self.refused else None for at in (50, 99)},
        }


class Client:
    """Sends ready-made requests. deadline_ms: of each, in the server and here."""

    def __init__(self, url: str, requests: list[bytes], deadline_ms: float) -> None:
        self._channels = [grpc.aio.insecure_channel(url, [("channel", at)]) for at in range(CHANNELS)]
        self._calls = [channel.unary_unary(METHOD) for channel in self._channels]
        self._requests, self._deadline_ms = requests, deadline_ms

    async def one(self, number: int, outcomes: Outcomes, sent: float) -> None:
        began = time.perf_counter()
        call, request = self._calls[number % CHANNELS], self._requests[number % len(self._requests)]
        try:
            await call(request, timeout=2 * self._deadline_ms / 1e3)
        except grpc.aio.AioRpcError as error:
            outcomes.refused.append(1e3 * (time.perf_counter() - began))
            outcomes.reasons[f"{error.code().name}: {(error.details() or '')[-60:]}"] += 1
            return
        took = 1e3 * (time.perf_counter() - began)
        if took > self._deadline_ms:
            outcomes.late += 1
        else:
            outcomes.sent.append(sent)
            outcomes.took.append(took)

    async def closed(self, seconds: float, users: int = AT_ONCE) -> Outcomes:
        """Users, each of whom asks again at once."""
        outcomes, began = Outcomes(seconds), time.perf_counter()

        async def user(at: int) -> None:
            while (now := time.perf_counter() - began) < seconds:
                await self.one(at, outcomes, now)
                at += users

        await asyncio.gather(*(user(at) for at in range(users)))
        return outcomes

    async def opened(self, rate: float, seconds: float) -> Outcomes:
        """Poisson arrivals at `rate` a second, whatever they take."""
        outcomes, tasks = Outcomes(seconds), set()
        rng, at, number = np.random.default_rng(0), 0.0, 0
        began, used = time.perf_counter(), time.process_time()
        while (at := at + rng.exponential(1 / rate)) < seconds:
            if (wait := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # behind, but answers are to be seen
            task = asyncio.create_task(self.one(number, outcomes, at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        outcomes.cores = (time.process_time() - used) / (time.perf_counter() - began)
        return outcomes

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def ready_made(bundle: Bundle, histories: list[np.ndarray], deadline_ms: float) -> list[bytes]:
    """Requests of users with these histories, int32 rows of the catalogue."""
    ids, requests = bundle.catalog.item_ids, []
    for rows in histories:
        message = build_request(RecommendRequest([ids[row] for row in rows]), "recommend")
        set_timeout(message, deadline_ms / 1e3)
        requests.append(message.SerializeToString())
    return requests


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
) -> None:
    """Serve a bundle, flood it, and print what came in time."""
    bundle = Bundle(bundle_path)
    histories, _ = sample_users(split_leave_one_out(read_dataset(data).interactions).test, users)
    requests = ready_made(bundle, histories, deadline_ms)
    out.mkdir(parents=True, exist_ok=True)
    deployment = Deployment(engine=engine, threads=threads, instances=instances)
    with serve_bundle(bundle_path, deployment, log_path=out / "triton.log") as server:
        wanted = [float(factor) for factor in factors.split(",")]
        found = asyncio.run(measured(server.grpc_url, requests, deadline_ms, wanted, seconds))
    table = Table("offered", "goodput", "of saturation", "p50 ms", "p99", "late", "refused", "after ms", "recovered s")
    for run in found["factors"].values():
        cells = [run["offered"], run["goodput"], run["share_of_saturation"], run["p50"], run["p99"], run["late"]]
        cells += [sum(run["refused"].values()), run["refused_p50"], run["recovered_after_s"]]
        table.add_row(*("-" if cell is None else f"{cell:.4g}" for cell in cells))
    console.print(f"saturation: {found['saturation']:.0f} requests a second; half of it: {found['half']}")
    console.print(table)
    settings = provenance(
        bundle=bundle_path.name, deadline_ms=deadline_ms, seconds=seconds, engine=engine, threads=threads or "all",
        instances=instances, load=os.getloadavg()[0],
    )  # fmt: skip
    (out / RESULTS).write_text(json.dumps(found | {"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
