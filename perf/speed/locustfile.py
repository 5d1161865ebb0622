"""Locust: users of a recommender, each of whom asks, looks around for a while, and asks again.

locust -f perf/speed/locustfile.py --host 127.0.0.1:8001 --histories histories.json    # with its web page
locust -f ... --headless --users 40 --run-time 60 --shape spike

`python -m perf.speed.load` writes such a file of histories, and runs every shape without a web page.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any, ClassVar

import grpc.experimental.gevent
from locust import LoadTestShape, User, events, task

from genrec_client import Recommender, RecommendError

# Before any channel is made: otherwise one user's request would stop all others.
grpc.experimental.gevent.init_gevent()

SHAPES = ("steady", "ramp", "spike")
SPIKE_BASE = 0.25  # share of the users who are there before and after a spike


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--histories", required=True, help="JSON: a list of lists of item ids")
    parser.add_argument("--think-s", type=float, default=1.0, help="mean pause of a user, exponential")
    parser.add_argument("--timeout-s", type=float, default=1.0, help="deadline of a request")
    parser.add_argument("--shape", choices=SHAPES, default="steady", help="how many users there are as time goes on")


@events.test_start.add_listener
def _open(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    environment.histories = json.loads(Path(options.histories).read_text())
    environment.recommender = Recommender(environment.host, timeout_s=options.timeout_s)


@events.test_stop.add_listener
def _close(environment: Any, **_: Any) -> None:
    statistics = environment.recommender.statistics
    print(f"retries {statistics.retries} of {statistics.requests} requests")
    environment.recommender.close()


class Shopper(User):
    """Asks with the history of a random user of the dataset, after a pause of random length."""

    def wait_time(self) -> float:
        return random.expovariate(1 / self.environment.parsed_options.think_s)

    @task
    def recommend(self) -> None:
        history = random.choice(self.environment.histories)
        began = time.perf_counter()
        error: RecommendError | None = None
        items = 0
        try:
            items = len(self.environment.recommender.recommend(history).items)
        except RecommendError as raised:
            error = raised
        self.environment.events.request.fire(
            request_type="gRPC",
            name="recommend",
            response_time=1e3 * (time.perf_counter() - began),
            response_length=items,
            exception=error,
        )


class UsersOverTime(LoadTestShape):
    """Users over time: all at once (steady), one more at a time (ramp), or four times as many in the middle third."""

    use_common_options: ClassVar[bool] = True  # --users and --run-time

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        at = self.get_run_time() / options.run_time
        if at >= 1:
            return None
        share = {"steady": 1.0, "ramp": at, "spike": 1.0 if 1 / 3 <= at < 2 / 3 else SPIKE_BASE}[options.shape]
        return max(1, round(share * options.num_users)), float(options.num_users)
