"""Requests that the server joins into batches: the same answers as alone, and every request exactly one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from genrec_client import Recommendations, Recommender, RecommendRequest
from tests.near import assert_same_items


@pytest.fixture(scope="module")
def requests(shop: Any) -> list[RecommendRequest]:
    """200 requests: of all lengths, some empty or unknown, with and without the optional inputs."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(200):
        user = shop.users[int(rng.integers(len(shop.users)))]
        history = user[-int(rng.integers(1, 40)) :]
        if number % 10 == 3:
            history = []
        elif number % 10 == 6:
            history = ["nobody sells this", *history, ""]
        made.append(
            RecommendRequest(
                history,
                top_k=int(rng.integers(1, 31)) if rng.random() < 0.7 else None,
                exclude=rng.choice(shop.ids, int(rng.integers(0, 50))).tolist() if rng.random() < 0.5 else None,
                allow_history=bool(rng.random() < 0.5) if rng.random() < 0.5 else None,
            )
        )
    return made


def assert_same(alone: Recommendations, batched: Recommendations) -> None:
    """Equal up to near ties."""
    assert (batched.drafted, batched.unknown_history, batched.filled) == (
        alone.drafted,
        alone.unknown_history,
        alone.filled,
    )
    assert (batched.bundle_version, batched.catalog_version) == (alone.bundle_version, alone.catalog_version)
    assert_same_items(batched, alone)


def statistics(wire: Any, model: str, requests: int = 0) -> tuple[int, int]:
    """Requests and batches that a model has answered since its start; waits until it has counted `requests`."""
    for _ in range(100):  # Triton counts a batch some time after its answers are out
        found = wire.triton.get_inference_statistics(model).model_stats[0]
        if found.inference_count >= requests:
            break
        time.sleep(0.05)
    return found.inference_count, found.execution_count


def test_the_same_answers_in_batches_as_alone(
    wire: Any, recommender: Recommender, requests: list[RecommendRequest]
) -> None:
    start = {step: statistics(wire, step) for step in ("backbone", "verifier")}
    alone = recommender.recommend_many(requests, concurrency=1, return_exceptions=False)
    before = {step: statistics(wire, step, start[step][0] + 200) for step in start}
    # Nobody else may use the server meanwhile, or this says nothing.
    assert all(before[step][i] - start[step][i] == 200 for step in start for i in (0, 1))
    for _ in range(3):  # how many requests meet in a batch is up to the scheduler of a busy machine
        batched = recommender.recommend_many(requests, concurrency=64, return_exceptions=False)
        after = {step: statistics(wire, step, before[step][0] + 200) for step in before}
        assert all(after[step][0] - before[step][0] == 200 for step in before)
        batches = {step: after[step][1] - before[step][1] for step in before}
        assert len(alone) == len(batched) == 200
        for one, other in zip(alone, batched, strict=True):
            assert_same(one, other)
        before = after
        # `preprocessing` joins only requests with the same optional inputs, so that these batches stay small.
        if max(batches.values()) < 150:
            break
    else:
        pytest.fail(f"200 requests hardly formed batches: {batches}")
    assert len({answer.item_ids for answer in alone}) > 100, "the answers do not tell the requests apart"


def test_every_request_gets_exactly_one_answer_its_own(wire: Any, shop: Any) -> None:
    """Good requests, refused ones and some without time, all mixed; each carries its number in three places."""
    total = 1200
    rng = np.random.default_rng(8)
    kinds = rng.choice(["good", "refused", "late"], total, p=[0.8, 0.1, 0.1]).tolist()
    outcomes: list[list[Any]] = [[] for _ in range(total)]
    window = threading.Semaphore(64)
    before = {step: statistics(wire, step) for step in ("recommend", "verifier")}
    futures = []
    for number, kind in enumerate(kinds):
        known = shop.users[number % len(shop.users)][-5:]
        inputs = [wire.ids("history", [*known, *["?"] * (number % 150)]), wire.top_k(number % 30 + 1)]
        if kind == "refused":
            inputs[1] = wire.top_k(31 + number)
        message = wire.message(inputs, timeout=1 if kind == "late" else 0)
        message.id = f"request-{number}"
        window.acquire()
        future = wire.stub.ModelInfer.future(message, timeout=30)
        futures.append(future)

        def done(future: Any, number: int = number) -> None:
            outcomes[number].append(future)
            window.release()

        future.add_done_callback(done)
    for future in futures:
        future.exception()
    deadline = time.monotonic() + 5
    while not all(outcomes) and time.monotonic() < deadline:  # callbacks come a moment after the results
        time.sleep(0.01)
    assert [len(calls) for calls in outcomes] == [1] * total
    for number, (kind, (future,)) in enumerate(zip(kinds, outcomes, strict=True)):
        if kind == "good":
            response = future.result()
            answer = wire.read(response)
            assert response.id == f"request-{number}"
            assert len(answer.item_ids) == number % 30 + 1 and answer.counts[2] == number % 150
        elif kind == "refused":
            assert future.code().name == "INVALID_ARGUMENT"
            assert f"top_k is {31 + number};" in future.details()
        else:
            assert future.code().name == "UNAVAILABLE"  # refused at the door where others are ahead, else later
            assert "timeout expired" in future.details() or "maximum queue size" in future.details()
    count = Counter(kinds)
    after = {step: statistics(wire, step) for step in before}
    assert after["verifier"][0] - before["verifier"][0] == count["good"]
    assert after["recommend"][0] - before["recommend"][0] == count["good"]


def test_answers_do_not_depend_on_the_order_of_arrival(
    recommender: Recommender, requests: list[RecommendRequest]
) -> None:
    forwards = recommender.recommend_many(requests, concurrency=48, return_exceptions=False)
    backwards = recommender.recommend_many(requests[::-1], concurrency=48, return_exceptions=False)
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert_same(one, other)


def test_a_burst_does_not_stall(wire: Any, shop: Any) -> None:
    """After the last request of a burst nothing arrives that would wake a batcher which missed its turn."""
    message = wire.message([wire.ids("history", shop.users[0])])
    slowest = []
    for _ in range(5):
        started = time.monotonic()
        for future in [wire.stub.ModelInfer.future(message, timeout=30) for _ in range(100)]:
            future.result()
        slowest.append(time.monotonic() - started)
    assert sorted(slowest)[2] < 0.5, f"100 requests at once took {slowest} s"
