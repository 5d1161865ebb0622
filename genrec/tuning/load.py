"""Load on a server from within its machine: requests are ready-made, so that the client takes little of it."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from genrec.serving.repository import MODEL
from genrec_client.request import RecommendRequest
from genrec_client.wire import build_request, parse_response, set_timeout

METHOD = "/inference.GRPCInferenceService/ModelInfer"
AT_ONCE = 32  # requests under way at saturation
CHANNELS = 4


@dataclass
class Outcomes:
    """Of the requests of one run. sent, took: seconds since it began, and milliseconds, of answers in time.

    seconds: that it lasted. refused: milliseconds of refusals; reasons: their gRPC status. late: answers that came
    after their deadline. cores: processors that the client took.
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
        outcomes.seconds = time.perf_counter() - began  # slow answers come long after the last question
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

    async def items(self) -> list[list[str]]:
        """The item ids that each request is answered with, best first. Raises grpc.aio.AioRpcError for a refusal."""

        async def asked(number: int) -> list[str]:
            answer = await self._calls[number % CHANNELS](self._requests[number])
            return list(parse_response(service_pb2.ModelInferResponse.FromString(answer), 0.0, 1).item_ids)

        return await asyncio.gather(*map(asked, range(len(self._requests))))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def ready_made(histories: Sequence[Sequence[bytes]], deadline_ms: float) -> list[bytes]:
    """Requests of users with these histories, item ids."""
    requests = []
    for history in histories:
        message = build_request(RecommendRequest(list(history)), MODEL)
        set_timeout(message, deadline_ms / 1e3)
        requests.append(message.SerializeToString())
    return requests
