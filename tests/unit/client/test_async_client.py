"""The client for asyncio against the test double. What it shares with `Recommender` is tested in test_client.py."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from genrec_client import (
    AsyncRecommender,
    DeadlineExceeded,
    InvalidRequest,
    Recommendations,
    Recommender,
    RecommendError,
    RecommendRequest,
    RetryPolicy,
    Statistics,
    Unavailable,
)
from tests.unit.client.faulty_server import (
    NOT_TRIED_AGAIN,
    STOPPING,
    UNLOADED,
    Fault,
    FaultyServer,
    answer,
    fixture_of,
    ids_of,
    inputs,
)

T = TypeVar("T")


class HoldingServer(FaultyServer):
    """Holds every request until `gate` is opened, or the test is over."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.behave = self.hold

    def hold(self, request: Any) -> None:
        self.gate.wait(30)

    def stop(self) -> None:
        self.gate.set()
        super().stop()


server, other, holding = fixture_of(FaultyServer), fixture_of(FaultyServer), fixture_of(HoldingServer)


def using(urls: Any, use: Callable[[AsyncRecommender], Awaitable[T]], **arguments: Any) -> T:
    """What `use` does with a client that is made and closed in one event loop."""

    async def main() -> T:
        async with AsyncRecommender(urls, **arguments) as recommender:
            return await use(recommender)

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this"
        await asyncio.sleep(0.005)


def histories(count: int) -> list[RecommendRequest]:
    return [RecommendRequest([number]) for number in range(count)]


def echo(request: Any) -> Any:
    return answer([item.decode() for item in ids_of(inputs(request)["history"])])


# --- one call ---


def test_requests_and_answers_are_those_of_the_other_client(server: FaultyServer) -> None:
    arguments: dict[str, Any] = {"top_k": 7, "exclude": ["x"], "allow_history": False, "query": "red shoes"}
    arguments["sheddable"] = True
    got = using(server.url, lambda recommender: recommender.recommend(["a", 5], **arguments), metadata=[("x-a", "b")])
    with Recommender(server.url) as recommender:
        expected = recommender.recommend(["a", 5], **arguments)
    ours, theirs = server.requests
    assert inputs(ours) == inputs(theirs)
    assert ours.parameters["sheddable"] == theirs.parameters["sheddable"]
    assert server.metadata[0]["x-a"] == "b"
    assert got.items == expected.items
    assert (got.attempts, got.bundle_version) == (1, "bundle-7")
    assert 0 < got.latency_ms < 5000


def test_what_cannot_be_put_on_the_wire_is_refused_before_it_is_sent(server: FaultyServer) -> None:
    async def use(recommender: AsyncRecommender) -> Statistics:
        with pytest.raises(InvalidRequest, match="history: got one str"):
            await recommender.recommend("abc")
        with pytest.raises(InvalidRequest, match="timeout_s"):
            await recommender.recommend([], timeout_s=0)
        return recommender.statistics

    assert using(server.url, use) == Statistics()
    assert not server.requests


@pytest.mark.parametrize(("fault", "kind"), NOT_TRIED_AGAIN)
def test_errors_are_those_of_the_other_client(server: FaultyServer, fault: Fault, kind: type[RecommendError]) -> None:
    server.behave = lambda request: fault

    async def use(recommender: AsyncRecommender) -> RecommendError:
        with pytest.raises(RecommendError) as caught:
            await recommender.recommend(["a"])
        assert recommender.statistics == Statistics(requests=1, failures=1)
        return caught.value

    error = using(server.url, use)
    assert type(error) is kind
    assert (error.code, error.message, error.attempts, error.address) == (*fault, 1, server.url)


def test_what_grpc_raises_instead_of_a_status_is_an_error_too(server: FaultyServer) -> None:
    async def use(recommender: AsyncRecommender) -> str:
        # Which the client itself would refuse.
        recommender._context = dataclasses.replace(recommender._context, metadata=(("Upper-Case", "x"),))
        with pytest.raises(RecommendError, match="metadata") as caught:
            await recommender.recommend(["a"])
        assert recommender.statistics.failures == 1
        return caught.value.code

    assert using(server.url, use) == "INTERNAL"


def test_one_deadline_covers_all_attempts(server: FaultyServer, other: FaultyServer) -> None:
    def slow_fault(request: Any) -> Fault:
        time.sleep(0.2)
        return STOPPING

    server.behave = slow_fault
    other.behave = lambda request: time.sleep(1.0)

    async def use(recommender: AsyncRecommender) -> DeadlineExceeded:
        # Until a call begins at the address that fails, and so has a second attempt.
        while True:
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                await recommender.recommend(["a"])
            assert 0.45 < time.monotonic() - started < 0.95
            if server.requests:
                return caught.value

    error = using([server.url, other.url], use, timeout_s=0.5)
    assert (error.code, error.attempts) == ("DEADLINE_EXCEEDED", 2)
    assert other.requests[-1].parameters["timeout"].int64_param < 310_000


# --- retries ---


@pytest.mark.parametrize("fault", [STOPPING, UNLOADED])
def test_a_stopping_server_is_left_for_the_other_address(
    server: FaultyServer, other: FaultyServer, fault: Fault
) -> None:
    server.behave = lambda request: fault

    async def use(recommender: AsyncRecommender) -> list[int]:
        attempts = [(await recommender.recommend(["a"])).attempts for _ in range(6)]
        assert recommender.statistics == Statistics(requests=6, retries=1)
        return attempts

    attempts = using([server.url, other.url], use, retry=RetryPolicy(cool_down_s=60))
    assert sorted(attempts) == [1, 1, 1, 1, 1, 2]
    assert (len(server.requests), len(other.requests)) == (1, 6)


def test_a_refused_connection_is_left_for_the_other_address(server: FaultyServer) -> None:
    async def use(recommender: AsyncRecommender) -> int:
        return max([(await recommender.recommend(["a"])).attempts for _ in range(2)])

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        dead_url = f"127.0.0.1:{bound.getsockname()[1]}"
        assert using([dead_url, server.url], use, timeout_s=5) == 2


def test_one_address_is_tried_again_after_a_backoff(server: FaultyServer) -> None:
    faults = [STOPPING, UNLOADED]
    server.behave = lambda request: faults.pop(0) if faults else None
    got = using(server.url, lambda recommender: recommender.recommend(["a"]), retry=RetryPolicy(backoff_s=0.1))
    assert got.attempts == 3
    # 0.1 s and 0.2 s, each shortened by up to half.
    assert got.latency_ms >= 150


def test_the_budget_bounds_retries_over_all_calls(server: FaultyServer) -> None:
    server.behave = lambda request: STOPPING

    async def use(recommender: AsyncRecommender) -> Statistics:
        got = await recommender.recommend_many(histories(30), concurrency=4)
        assert {type(error) for error in got} == {Unavailable}
        return recommender.statistics

    policy = RetryPolicy(max_attempts=2, backoff_s=0.0, budget_ratio=0.1, budget_reserve=2)
    assert using(server.url, use, retry=policy) == Statistics(30, retries=5, failures=30, retries_refused=25)


# --- cancellation ---


async def cancel(call: Coroutine[Any, Any, Any], sent: Callable[[], bool]) -> None:
    task = asyncio.create_task(call)
    await until(sent)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def wait_for(call: Coroutine[Any, Any, Any], sent: Callable[[], bool]) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call, 0.3)
    assert sent()


async def timeout(call: Coroutine[Any, Any, Any], sent: Callable[[], bool]) -> None:
    if sys.version_info < (3, 11):
        call.close()
        pytest.skip("asyncio.timeout came with Python 3.11")
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await call
    assert sent()


@pytest.mark.parametrize("give_up", [cancel, wait_for, timeout])
def test_cancelling_the_task_cancels_the_request(holding: HoldingServer, give_up: Any) -> None:
    async def use(recommender: AsyncRecommender) -> Recommendations:
        await recommender.readiness()  # connects, so that the request arrives in time
        await give_up(recommender.recommend(["a"]), lambda: bool(holding.requests))
        assert recommender.statistics == Statistics(requests=1, cancelled=1)
        assert await asyncio.to_thread(holding.abandoned.acquire, timeout=10)
        holding.gate.set()
        return await recommender.recommend(["a"])

    assert using(holding.url, use, timeout_s=60).attempts == 1


def test_cancelling_the_task_ends_the_wait_before_a_retry(server: FaultyServer) -> None:
    server.behave = lambda request: STOPPING

    async def use(recommender: AsyncRecommender) -> Statistics:
        await cancel(recommender.recommend(["a"]), lambda: bool(server.requests))
        return recommender.statistics

    policy = RetryPolicy(backoff_s=20, backoff_max_s=20)
    assert using(server.url, use, timeout_s=60, retry=policy) == Statistics(requests=1, cancelled=1)
    assert len(server.requests) == 1


def test_a_task_that_is_cancelled_just_before_the_client_is_closed_ends_cancelled(holding: HoldingServer) -> None:
    async def main() -> Statistics:
        async with AsyncRecommender(holding.url, timeout_s=60) as recommender:
            task = asyncio.create_task(recommender.recommend(["a"]))
            await until(lambda: bool(holding.requests))
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return recommender.statistics

    assert asyncio.run(main()) == Statistics(requests=1, cancelled=1)


# --- many users ---


def test_many_users_are_answered_in_order_and_at_the_same_time(server: FaultyServer) -> None:
    def slow_echo(request: Any) -> Any:
        response = echo(request)
        time.sleep(0.02 if len(server.requests) % 3 else 0.05)
        return response

    server.behave = slow_echo
    got = using(server.url, lambda recommender: recommender.recommend_many(histories(40), concurrency=8), timeout_s=10)
    assert [result.item_ids for result in got if not isinstance(result, RecommendError)] == [
        (str(number),) for number in range(40)
    ]
    assert 1 < server.most_in_flight <= 8


def test_users_are_drawn_only_as_fast_as_they_are_sent(holding: HoldingServer) -> None:
    drawn = 0

    def draw() -> Iterator[RecommendRequest]:
        nonlocal drawn
        for request in histories(20):
            drawn += 1
            yield request

    async def use(recommender: AsyncRecommender) -> int:
        task = asyncio.create_task(recommender.recommend_many(draw(), concurrency=3))
        await until(lambda: holding.in_flight == 3)
        await asyncio.sleep(0.05)
        assert drawn == 3
        holding.gate.set()
        return len(await task)

    assert using(holding.url, use, timeout_s=60) == 20


def test_one_users_error_stands_in_its_place(server: FaultyServer) -> None:
    server.behave = lambda request: ("INVALID_ARGUMENT", "no") if b"2" in ids_of(inputs(request)["history"]) else None
    requests = [*histories(5), RecommendRequest([1.5])]  # type: ignore[list-item]

    async def use(recommender: AsyncRecommender) -> list[str]:
        got = await recommender.recommend_many(requests)
        assert recommender.statistics == Statistics(requests=5, failures=1)
        return [type(result).__name__ for result in got]

    names = using(server.url, use)
    assert names == [*["Recommendations"] * 2, "InvalidRequest", *["Recommendations"] * 2, "InvalidRequest"]


def test_the_first_error_cancels_what_is_under_way(holding: HoldingServer) -> None:
    def refuse_last(request: Any) -> Any:
        if b"3" not in ids_of(inputs(request)["history"]):
            return holding.hold(request)
        while holding.in_flight < 4:
            time.sleep(0.01)
        return "INVALID_ARGUMENT", "no"

    holding.behave = refuse_last

    async def use(recommender: AsyncRecommender) -> Statistics:
        with pytest.raises(InvalidRequest):
            await recommender.recommend_many(histories(40), concurrency=4, return_exceptions=False)
        for _ in range(3):
            assert await asyncio.to_thread(holding.abandoned.acquire, timeout=10)
        return recommender.statistics

    assert using(holding.url, use, timeout_s=60) == Statistics(requests=4, failures=1, cancelled=3)


def test_what_the_iterable_raises_cancels_what_is_under_way(holding: HoldingServer) -> None:
    def draw() -> Iterator[RecommendRequest]:
        yield from histories(3)
        raise KeyError("no such user")

    async def use(recommender: AsyncRecommender) -> Statistics:
        with pytest.raises(KeyError, match="no such user"):
            await recommender.recommend_many(draw())
        return recommender.statistics

    assert using(holding.url, use, timeout_s=60) == Statistics(requests=3, cancelled=3)


def test_cancelling_many_users_cancels_all_their_requests(holding: HoldingServer) -> None:
    async def use(recommender: AsyncRecommender) -> Statistics:
        await cancel(recommender.recommend_many(histories(40), concurrency=4), lambda: holding.in_flight == 4)
        for _ in range(4):
            assert await asyncio.to_thread(holding.abandoned.acquire, timeout=10)
        return recommender.statistics

    assert using(holding.url, use, timeout_s=60) == Statistics(requests=4, cancelled=4)


def test_no_users_no_requests_and_no_concurrency_is_refused(server: FaultyServer) -> None:
    async def use(recommender: AsyncRecommender) -> list[Any]:
        with pytest.raises(ValueError, match="concurrency is 0"):
            await recommender.recommend_many(histories(1), concurrency=0)
        return [*await recommender.recommend_many([])]

    assert using(server.url, use) == []
    assert not server.requests


# --- the event loop ---


@asynccontextmanager
async def heartbeat(every_s: float = 0.01) -> AsyncIterator[list[float]]:
    """When a task that wants to run every `every_s`, 0 for whenever it is its turn, got to run."""
    beats = [time.monotonic()]

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            beats.append(time.monotonic())

    task = asyncio.create_task(beat())
    try:
        yield beats
    finally:
        task.cancel()


def longest_pause(beats: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(beats))


def test_the_loop_runs_on_while_calls_wait(holding: HoldingServer, server: FaultyServer) -> None:
    """For an answer, for a retry, and for a connection that is not accepted."""
    server.behave = lambda request: STOPPING
    policy = RetryPolicy(backoff_s=1.0, max_attempts=2)

    async def use(holder: AsyncRecommender) -> list[float]:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            async with (
                AsyncRecommender(server.url, timeout_s=5, retry=policy) as retrying,
                AsyncRecommender(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=1) as connecting,
                heartbeat() as beats,
            ):
                got = await asyncio.gather(
                    *(client.recommend_many(histories(8)) for client in (holder, retrying, connecting))
                )
                assert all(isinstance(error, RecommendError) for answers in got for error in answers)
                return list(beats)

    beats = using(holding.url, use, timeout_s=1)
    assert beats[-1] - beats[0] > 0.5
    assert len(beats) > 20
    # Far above what a busy test machine takes away, far below any of the waits.
    assert longest_pause(beats) < 0.4


def test_requests_that_are_refused_at_once_do_not_hold_up_the_loop(server: FaultyServer) -> None:
    async def use(recommender: AsyncRecommender) -> tuple[int, int]:
        async with heartbeat(every_s=0) as beats:
            got = await recommender.recommend_many(
                (RecommendRequest([1.5]) for _ in range(2_000)),  # type: ignore[list-item]
                concurrency=8,
            )
            return len(got), len(beats) - 1  # the first is the start

    refused, turns = using(server.url, use)
    assert refused == 2_000
    # Another task gets a turn whenever each worker has had one: counted, because a fast machine takes no time.
    assert turns >= 2_000 / 8


def test_a_client_may_be_made_before_the_loop_runs_and_belongs_to_the_first(server: FaultyServer) -> None:
    recommender = AsyncRecommender(server.url)
    assert asyncio.run(recommender.recommend(["a"])).attempts == 1
    for use in (recommender.recommend(["a"]), recommender.readiness(), recommender.close()):
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(use)


# --- the client as an object ---


def test_a_closed_client_says_so(server: FaultyServer) -> None:
    async def main() -> None:
        async with AsyncRecommender(server.url) as recommender:
            await recommender.recommend(["a"])
        await recommender.close()
        for use in (recommender.recommend, recommender.recommend_many):
            with pytest.raises(RuntimeError, match="AsyncRecommender is closed"):
                await use(histories(1))
        with pytest.raises(RuntimeError, match="closed"):
            await recommender.readiness()
        with pytest.raises(RuntimeError, match="closed"):
            async with recommender:
                pass

    asyncio.run(main())


def test_a_client_that_was_never_used_can_be_closed() -> None:
    asyncio.run(AsyncRecommender("127.0.0.1:1").close())


def test_calls_under_way_end_when_the_client_is_closed(holding: HoldingServer, server: FaultyServer) -> None:
    """Whether they wait for an answer or for a retry."""
    server.behave = lambda request: STOPPING
    policy = RetryPolicy(backoff_s=20, backoff_max_s=20)

    async def main() -> None:
        clients = [AsyncRecommender(double.url, timeout_s=60, retry=policy) for double in (holding, server)]
        tasks = [asyncio.create_task(client.recommend(["a"])) for client in clients]
        await until(lambda: bool(holding.requests and server.requests))
        for client, task in zip(clients, tasks, strict=True):
            await client.close()
            with pytest.raises(RecommendError, match="closed") as caught:
                await asyncio.wait_for(task, 5)
            assert type(caught.value) is RecommendError
            assert (caught.value.code, caught.value.attempts) == ("CANCELLED", 1)
            assert client.statistics == Statistics(requests=1, failures=1)
        assert await asyncio.to_thread(holding.abandoned.acquire, timeout=10)

    asyncio.run(main())


def test_a_call_that_fails_while_the_client_is_closed_does_not_wait_for_a_retry(server: FaultyServer) -> None:
    server.behave = lambda request: STOPPING

    async def main() -> None:
        client = AsyncRecommender(server.url, timeout_s=60, retry=RetryPolicy(backoff_s=20, backoff_max_s=20))
        send = client._send

        async def then_close(*arguments: Any) -> Any:
            outcome = await send(*arguments)
            await client.close()
            return outcome

        client._send = then_close  # type: ignore[method-assign]
        with pytest.raises(RecommendError, match="closed") as caught:
            await asyncio.wait_for(client.recommend(["a"]), 5)
        assert (caught.value.code, caught.value.attempts) == ("CANCELLED", 1)

    asyncio.run(main())


def test_readiness_of_each_address(server: FaultyServer, other: FaultyServer) -> None:
    other.ready = False
    found = using([server.url, other.url, "127.0.0.1:1"], lambda recommender: recommender.readiness())
    assert [address.ready for address in found] == [True, False, False]
    assert [address.url for address in found[:2]] == [server.url, other.url]
    assert "not ready" in found[1].message
    assert "UNAVAILABLE" in found[2].message


def test_arguments_that_cannot_be_used_are_refused_at_once() -> None:
    for arguments in (("", {}), ("http://a:8000", {}), ("a:1", {"timeout_s": 0})):
        with pytest.raises(ValueError, match=r"host:port|timeout_s"):
            AsyncRecommender(arguments[0], **arguments[1])
    with pytest.raises(TypeError):
        AsyncRecommender("a:1", no_such_argument=1)  # type: ignore[call-arg]


def test_its_methods_are_coroutine_functions_for_whoever_asks() -> None:
    methods = [AsyncRecommender.recommend, AsyncRecommender.recommend_many, AsyncRecommender.readiness]
    assert all(map(inspect.iscoroutinefunction, methods))
    assert inspect.signature(AsyncRecommender.recommend) == inspect.signature(Recommender.recommend)
