"""Open-loop load: requests leave at their times whether or not earlier ones are answered.

Also a script, for a pod of the cluster: python load.py URL RATE asks for a user without a history until SIGTERM, and
prints one JSON object.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_client import ItemId, Recommender, RecommendError, RecommendRequest

WORKERS = 128
TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    due_s: when it was to leave, in seconds on time.monotonic(). latency_ms: milliseconds from then to the end of the
    call. attempts: requests sent for it. version: the bundle that answered; "" when none did. error: why none did, ""
    otherwise.
    """

    due_s: float
    latency_ms: float
    attempts: int
    version: str = ""
    error: str = ""


class Traffic:
    """Poisson arrivals at `rate` requests per second, as long as the block lasts.

    histories: item ids of users, asked for in turn. rate: requests per second. seed: of the arrivals.
    """

    def __init__(self, histories: Sequence[Sequence[ItemId]], rate: float, seed: int = 0) -> None:
        self._histories = histories
        self._rate = rate
        self._random = random.Random(seed)
        self._open = ExitStack()
        self._recommender: Recommender | None = None
        self._outcomes: list[Outcome] = []
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._send, name="load")

    def use(self, urls: Sequence[str]) -> None:
        """From now on, requests go to these addresses (host:port); those under way end where they are."""
        self._recommender = self._open.enter_context(Recommender(urls, timeout_s=TIMEOUT_S))

    def __enter__(self) -> Traffic:
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        self._open.close()

    def between(self, begin_s: float, end_s: float) -> list[Outcome]:
        """Ended requests that were to leave in that time, on time.monotonic()."""
        return [outcome for outcome in self._outcomes.copy() if begin_s <= outcome.due_s < end_s]

    def _send(self) -> None:
        with ThreadPoolExecutor(WORKERS) as workers:
            due_s = time.monotonic()
            number = 0
            while not self._stop.wait(max(0.0, due_s - time.monotonic())):
                workers.submit(self._ask, self._histories[number % len(self._histories)], due_s)
                number += 1
                due_s += self._random.expovariate(self._rate)

    def _ask(self, history: Sequence[ItemId], due_s: float) -> None:
        assert self._recommender is not None
        try:
            answer = self._recommender.recommend(history)
            ended = (answer.attempts, answer.bundle_version, "")
        except RecommendError as error:
            ended = (error.attempts, "", str(error))
        self._outcomes.append(Outcome(due_s, 1e3 * (time.monotonic() - due_s), *ended))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, latency in ms, versions and errors of at least one request."""
    retries = sum(max(0, outcome.attempts - 1) for outcome in outcomes)
    p50, p95, p99 = np.percentile([outcome.latency_ms for outcome in outcomes], [50, 95, 99])
    return {
        "requests": len(outcomes),
        "lost": sum(bool(outcome.error) for outcome in outcomes),
        "retries": retries,
        "retries_share": retries / len(outcomes),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "versions": dict(Counter(outcome.version for outcome in outcomes if outcome.version)),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common(5)),
    }


def saturation(urls: Sequence[str], histories: Sequence[Sequence[ItemId]], seconds: float, concurrency: int) -> float:
    """Requests per second that the servers answer when `concurrency` requests are always under way.

    Raises RecommendError if a request fails.
    """

    def requests() -> Iterator[RecommendRequest]:
        number = 0
        while time.monotonic() < end_s:
            yield RecommendRequest(histories[number % len(histories)])
            number += 1

    with Recommender(urls, timeout_s=30.0) as recommender:
        began_s = time.monotonic()
        end_s = began_s + seconds
        answers = recommender.recommend_many(requests(), concurrency=concurrency, return_exceptions=False)
        return len(answers) / (time.monotonic() - began_s)


def main(url: str, rate: float) -> None:
    """Load one address until SIGTERM, then print the summary."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    began_s = time.monotonic()
    with Traffic([[]], rate) as traffic:
        traffic.use([url])
        stop.wait()
    print(json.dumps(summary(traffic.between(began_s, time.monotonic()))))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
