"""The client against a test double of the server, which answers and fails as the tests ask it to."""

from __future__ import annotations

import json
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferResult

from genrec_client import (
    AsyncRecommender,
    DeadlineExceeded,
    InvalidRequest,
    KnowledgeWriter,
    Recommender,
    RecommendError,
    RecommendRequest,
    RetryPolicy,
    Source,
    TlsOptions,
    Unavailable,
    cli,
)
from genrec_client.addresses import AddressPool
from genrec_client.channel import split_urls
from genrec_client.retry import Failure, RetryBudget, classify, decide
from tests.unit.client.faulty_server import (
    DEAD_STEP,
    NOT_TRIED_AGAIN,
    STOPPING,
    UNLOADED,
    Fault,
    FaultyServer,
    answer,
    fixture_of,
    ids_of,
    inputs,
    pack,
)

server, other = fixture_of(FaultyServer), fixture_of(FaultyServer)


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address where nothing listens: bound, so that nobody else takes it, but refusing connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


# --- the wire contract ---


def test_only_the_history_is_sent_when_nothing_else_is_given(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend(["a", "bé"])
    (request,) = server.requests
    assert request.model_name == "recommend"
    assert request.model_version == ""
    assert set(inputs(request)) == {"history"} and set(request.parameters) == {"timeout"}
    assert ids_of(inputs(request)["history"]) == [b"a", "bé".encode()]


def test_every_input_has_the_type_and_shape_of_the_contract(server: FaultyServer) -> None:
    with Recommender(server.url, model="other") as recommender:
        recommender.recommend(
            ["a"], top_k=7, exclude=["x", "y"], allow_history=False, query="red shoes", sheddable=True
        )
    (request,) = server.requests
    assert request.parameters["sheddable"].bool_param is True
    sent = inputs(request)
    assert request.model_name == "other"
    assert set(sent) == {"history", "top_k", "exclude", "allow_history", "query"}
    assert sent["top_k"] == ("INT32", [1, 1], struct.pack("<i", 7))
    assert ids_of(sent["exclude"]) == [b"x", b"y"]
    assert sent["allow_history"] == ("BOOL", [1, 1], b"\x00")
    assert ids_of(sent["query"]) == [b"red shoes"]


def test_item_ids_may_be_text_bytes_or_integers(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend(["a", b"\xff", 12, -3, np.int64(7)], exclude=np.array([5, 6]))
    sent = inputs(server.requests[0])
    assert ids_of(sent["history"]) == [b"a", b"\xff", b"12", b"-3", b"7"]
    assert ids_of(sent["exclude"]) == [b"5", b"6"]


def test_empty_history_and_empty_exclude_are_empty_tensors(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend([], exclude=[])
    sent = inputs(server.requests[0])
    assert sent["history"] == ("BYTES", [1, 0], b"")
    assert sent["exclude"] == ("BYTES", [1, 0], b"")


def test_limits_are_left_to_the_server(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend(["a"], top_k=0)
    assert inputs(server.requests[0])["top_k"] == ("INT32", [1, 1], struct.pack("<i", 0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"history": "abc"}, "history: got one str"),
        ({"history": ["a", 1.5]}, r"history\[1\]: 1.5 is a float"),
        ({"history": [True]}, r"history\[0\]: True is a bool"),
        ({"history": ["\ud800"]}, "cannot be encoded"),
        ({"history": None}, "history: NoneType"),
        ({"history": {"a": 1}}, "history: got a dict"),
        ({"history": {"a", "b"}}, "history: a set has no order"),
        ({"history": bytearray(b"a")}, "history: got one bytearray"),
        ({"history": 7}, "history: int"),
        ({"history": [np.bool_(True)]}, r"history\[0\]: True is a bool"),
        ({"history": [np.array([5])]}, r"history\[0\]"),
        ({"history": [None]}, r"history\[0\]: None is a NoneType"),
        ({"history": [], "exclude": b"x"}, "exclude: got one bytes"),
        ({"history": [], "exclude": {"x": 1}}, "exclude: got a dict"),
        ({"history": [], "top_k": 2**31}, "top_k: 2147483648.* to 2147483647"),
        ({"history": [], "top_k": "5"}, "top_k: '5' is a str"),
        ({"history": [], "top_k": 5.0}, "top_k: 5.0 is a float"),
        ({"history": [], "top_k": True}, "top_k: True is a bool"),
        ({"history": [], "top_k": np.bool_(True)}, "top_k: .*True.* is a bool"),
        ({"history": [], "allow_history": "false"}, "allow_history: 'false' is a str; give True or False"),
        ({"history": [], "allow_history": 0}, "allow_history: 0 is a int"),
        ({"history": [], "sheddable": 1}, "sheddable: 1 is a int; give True or False"),
        ({"history": [], "allow_history": [False]}, r"allow_history: \[False\] is a list"),
        ({"history": [], "query": 3}, "query: 3 is a int"),
        ({"history": [], "query": b"tent"}, "query: b'tent' is a bytes"),
        ({"history": [], "timeout_s": 0}, "timeout_s: 0"),
        ({"history": [], "timeout_s": -1}, "timeout_s: -1"),
        ({"history": [], "timeout_s": 1e9}, "timeout_s: 1000000000.0 .* below 1000000"),
        ({"history": [], "timeout_s": float("nan")}, "timeout_s: nan"),
        ({"history": [], "timeout_s": float("inf")}, "timeout_s: inf"),
        ({"history": [], "timeout_s": "5"}, "timeout_s: '5' is a str"),
        ({"history": [], "timeout_s": True}, "timeout_s: True is a bool"),
    ],
)
def test_what_cannot_be_put_on_the_wire_is_refused_before_it_is_sent(
    server: FaultyServer, arguments: dict[str, Any], words: str
) -> None:
    with Recommender(server.url) as recommender:
        with pytest.raises(InvalidRequest, match=words) as caught:
            recommender.recommend(**arguments)
        assert recommender.statistics.requests == 0
    assert caught.value.attempts == 0
    assert not server.requests


def test_numbers_and_flags_may_be_numpys(server: FaultyServer) -> None:
    with Recommender(server.url, timeout_s=np.float32(2)) as recommender:
        recommender.recommend({"a": 1}.keys(), top_k=np.int64(7), exclude={"x"}, allow_history=np.bool_(False))
    sent = inputs(server.requests[0])
    assert sent["top_k"] == ("INT32", [1, 1], struct.pack("<i", 7))
    assert sent["allow_history"] == ("BOOL", [1, 1], b"\x00")


def test_the_answer_is_parsed(server: FaultyServer) -> None:
    response = answer(["i2", "i1", "é"], sources=[2, 0, 1], scores=[3.5, -0.5, -1e9])
    server.behave = lambda request: response
    with Recommender(server.url) as recommender:
        got = recommender.recommend(["a"])
    assert got.item_ids == ("i2", "i1", "é")
    assert [item.score for item in got.items] == [3.5, -0.5, -1e9]
    assert [item.source for item in got.items] == [Source.VOTED, Source.DRAFTED, Source.FALLBACK]
    assert (got.drafted, got.valid, got.unknown_history, got.filled) == (32, 20, 3, 1)
    assert (got.bundle_version, got.catalog_version) == ("bundle-7", "catalog-9")
    assert got.attempts == 1
    assert 0 < got.latency_ms < 5000
    # The double speaks the protocol as NVIDIA's own client reads it.
    assert InferResult(response).as_numpy("item_ids").tolist() == [[b"i2", b"i1", "é".encode()]]


def test_an_empty_answer_is_an_answer(server: FaultyServer) -> None:
    server.behave = lambda request: answer([])
    with Recommender(server.url) as recommender:
        assert recommender.recommend([]).items == ()


def _without(name: str) -> Any:
    response = answer(["i1"])
    for index, tensor in enumerate(response.outputs):
        if tensor.name == name:
            del response.outputs[index]
            del response.raw_output_contents[index]
            break
    return response


def _with_raw(index: int, raw: bytes) -> Any:
    response = answer(["i1"])
    response.raw_output_contents[index] = raw
    return response


@pytest.mark.parametrize(
    "response",
    [
        _without("version"),
        _with_raw(0, b"\x05\x00\x00\x00ab"),
        _with_raw(0, pack([b"\xff"])),
        _with_raw(1, b"\x00" * 8),
        _with_raw(2, b"\x00\x00"),
        _with_raw(2, b"\x03"),
        _with_raw(3, b"\x00" * 12),
        _with_raw(4, pack([b"v"])),
    ],
)
def test_an_answer_that_breaks_the_contract_is_an_error(server: FaultyServer, response: Any) -> None:
    server.behave = lambda request: response
    with Recommender(server.url) as recommender:
        with pytest.raises(RecommendError, match="wire contract") as caught:
            recommender.recommend(["a"])
        assert recommender.statistics.failures == 1
    assert caught.value.code == "INTERNAL"


def test_metadata_goes_with_the_request(server: FaultyServer) -> None:
    with Recommender(server.url, metadata=[("x-tenant", "shop")]) as recommender:
        recommender.recommend(["a"])
    assert server.metadata[0]["x-tenant"] == "shop"


# --- deadlines ---


def test_the_deadline_goes_out_as_grpc_deadline_and_as_triton_timeout(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        recommender.recommend(["a"], timeout_s=3.0)
    assert 2.0 < server.time_remaining_s[0] <= 3.1
    assert 2_000_000 < server.requests[0].parameters["timeout"].int64_param <= 3_000_000


def test_one_deadline_covers_all_attempts(server: FaultyServer, other: FaultyServer) -> None:
    def slow_fault(request: Any) -> Fault:
        time.sleep(0.2)
        return STOPPING

    def too_slow(request: Any) -> None:
        time.sleep(1.0)

    server.behave, other.behave = slow_fault, too_slow
    with Recommender([server.url, other.url], timeout_s=0.5) as recommender:
        # Until a call begins at the address that fails, and so has a second attempt.
        while not server.requests:
            other.requests.clear()
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                recommender.recommend(["a"])
            took = time.monotonic() - started
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert caught.value.attempts == 2
    assert 0.45 < took < 0.95
    first, second = server.requests[0], other.requests[0]
    assert first.parameters["timeout"].int64_param > 450_000
    assert second.parameters["timeout"].int64_param < 310_000


def test_no_retry_that_would_come_after_the_deadline(server: FaultyServer) -> None:
    server.behave = lambda request: STOPPING
    policy = RetryPolicy(backoff_s=10, backoff_max_s=10)
    with Recommender(server.url, timeout_s=0.5, retry=policy) as recommender:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="deadline is too near") as caught:
            recommender.recommend(["a"])
    assert time.monotonic() - started < 0.4
    assert caught.value.attempts == 1


# --- retries ---


@pytest.mark.parametrize("fault", [STOPPING, UNLOADED, DEAD_STEP])
def test_a_stopping_server_is_left_for_the_other_address(
    server: FaultyServer, other: FaultyServer, fault: Fault
) -> None:
    server.behave = lambda request: fault
    with Recommender([server.url, other.url], retry=RetryPolicy(cool_down_s=60)) as recommender:
        attempts = [recommender.recommend(["a"]).attempts for _ in range(6)]
        statistics = recommender.statistics
    # One call met the fault; the rest passed over the address while it cools down.
    assert sorted(attempts) == [1, 1, 1, 1, 1, 2]
    assert len(server.requests) == 1
    assert len(other.requests) == 6
    assert (statistics.requests, statistics.retries, statistics.failures) == (6, 1, 0)


def test_an_address_is_used_again_after_its_cool_down(server: FaultyServer, other: FaultyServer) -> None:
    server.behave = lambda request: STOPPING
    with Recommender([server.url, other.url], retry=RetryPolicy(cool_down_s=0.2)) as recommender:
        while not server.requests:
            recommender.recommend(["a"])
        server.behave = lambda request: None
        time.sleep(0.25)
        for _ in range(4):
            assert recommender.recommend(["a"]).attempts == 1
    assert len(server.requests) == 3


def test_calls_go_round_the_addresses(server: FaultyServer, other: FaultyServer) -> None:
    with Recommender(f"{server.url},{other.url}") as recommender:
        for _ in range(6):
            recommender.recommend(["a"])
    assert (len(server.requests), len(other.requests)) == (3, 3)


def test_a_refused_connection_is_left_for_the_other_address(server: FaultyServer, dead_url: str) -> None:
    with Recommender([dead_url, server.url], retry=RetryPolicy(cool_down_s=60)) as recommender:
        for _ in range(4):
            assert recommender.recommend(["a"]).item_ids == ("i1", "i2")
        assert recommender.statistics.retries == 1


def test_one_address_is_tried_again_after_a_backoff(server: FaultyServer) -> None:
    faults = [STOPPING, UNLOADED]
    server.behave = lambda request: faults.pop(0) if faults else None
    with Recommender(server.url, retry=RetryPolicy(backoff_s=0.1)) as recommender:
        got = recommender.recommend(["a"])
    assert got.attempts == 3
    # 0.1 s and 0.2 s, each shortened by up to half.
    assert got.latency_ms >= 150


def test_a_refused_connection_everywhere_is_unavailable(dead_url: str) -> None:
    with Recommender(dead_url, retry=RetryPolicy(backoff_s=0.01)) as recommender:
        with pytest.raises(Unavailable, match="limit is 3 attempts") as caught:
            recommender.recommend(["a"], timeout_s=5.0)
        assert recommender.statistics.failures == 1
    assert caught.value.code == "UNAVAILABLE"
    assert caught.value.attempts == 3
    assert caught.value.address == dead_url


@pytest.mark.parametrize(("fault", "kind"), NOT_TRIED_AGAIN)
def test_other_failures_are_not_tried_again(
    server: FaultyServer, other: FaultyServer, fault: Fault, kind: type[RecommendError]
) -> None:
    server.behave = other.behave = lambda request: fault
    with Recommender([server.url, other.url]) as recommender:
        with pytest.raises(RecommendError) as caught:
            recommender.recommend(["a"])
        statistics = recommender.statistics
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message, caught.value.attempts) == (*fault, 1)
    assert len(server.requests) + len(other.requests) == 1
    assert (statistics.requests, statistics.retries, statistics.failures) == (1, 0, 1)


def test_the_budget_bounds_retries_over_all_calls(server: FaultyServer) -> None:
    server.behave = lambda request: STOPPING
    policy = RetryPolicy(max_attempts=2, backoff_s=0.0, budget_ratio=0.1, budget_reserve=2)
    notes = []
    with Recommender(server.url, retry=policy) as recommender:
        for _ in range(30):
            with pytest.raises(Unavailable) as caught:
                recommender.recommend(["a"])
            notes.append(caught.value.note)
        statistics = recommender.statistics
    assert statistics.retries == 2 + 3
    assert statistics.retries_refused == 25
    assert len(server.requests) == 35
    assert notes.count("not retried: the retry budget is spent") == 25


def test_the_budget_saves_up_only_its_capacity() -> None:
    budget = RetryBudget(ratio=0.1, reserve=0, capacity=2)
    assert not budget.spend()
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(10):
        budget.earn()
    assert budget.spend()


def test_the_pool_prefers_addresses_that_are_new_to_the_call() -> None:
    now = 0.0
    pool = AddressPool(3, cool_down_s=1.0, clock=lambda: now)
    assert sorted(pool.pick() for _ in range(3)) == [0, 1, 2]
    pool.set_aside(0)
    assert {pool.pick() for _ in range(4)} == {1, 2}
    assert pool.pick({1, 2}) == 0  # cooling, but the only one that is new
    assert not pool.has_fresh({1, 2})
    now = 0.5
    pool.set_aside(1)
    pool.set_aside(2)
    assert pool.pick({0, 1, 2}) == 0  # its cool-down ends first
    now = 1.0
    assert pool.has_fresh({1, 2})


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(max_attempts=9, backoff_s=0.1, backoff_max_s=0.3)

    def delay(attempts: int, jitter: float) -> float:
        decision = decide(Failure.GONE, policy, attempts=attempts, remaining_s=9, fresh_address=False, jitter=jitter)
        assert decision.retry
        return decision.delay_s

    assert [delay(attempts, 0.0) for attempts in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert delay(1, 1.0) == pytest.approx(0.05)


def test_a_broken_connection_counts_as_gone() -> None:
    assert classify("UNAVAILABLE", "Socket closed") is Failure.GONE
    assert classify("UNAVAILABLE", "failed to connect to all addresses") is Failure.GONE


# --- many users ---


def test_many_users_are_answered_in_order_and_at_the_same_time(server: FaultyServer) -> None:
    def echo(request: Any) -> Any:
        (item,) = ids_of(inputs(request)["history"])
        time.sleep(0.02 if int(item) % 3 else 0.05)
        return answer([item.decode()])

    server.behave = echo
    with Recommender(server.url, timeout_s=10) as recommender:
        got = recommender.recommend_many((RecommendRequest([n]) for n in range(40)), concurrency=8)
    assert [result.item_ids for result in got if not isinstance(result, RecommendError)] == [
        (str(n),) for n in range(40)
    ]
    assert 1 < server.most_in_flight <= 8


def test_one_users_error_stands_in_its_place(server: FaultyServer) -> None:
    def fail_third(request: Any) -> Any:
        return ("INVALID_ARGUMENT", "no") if ids_of(inputs(request)["history"]) == [b"2"] else None

    server.behave = fail_third
    requests = [RecommendRequest([n]) for n in range(5)]
    requests.append(RecommendRequest([1.5]))  # type: ignore[list-item]
    with Recommender(server.url) as recommender:
        got = recommender.recommend_many(requests)
        statistics = recommender.statistics
    assert [type(result).__name__ for result in got] == [
        *["Recommendations"] * 2,
        "InvalidRequest",
        *["Recommendations"] * 2,
        "InvalidRequest",
    ]
    assert (statistics.requests, statistics.failures) == (5, 1)


def test_an_error_is_raised_when_asked(server: FaultyServer) -> None:
    server.behave = lambda request: ("INVALID_ARGUMENT", "no")
    with Recommender(server.url) as recommender:
        with pytest.raises(InvalidRequest):
            recommender.recommend_many([RecommendRequest(["a"])] * 50, concurrency=2, return_exceptions=False)
        statistics = recommender.statistics
    assert (statistics.failures, statistics.cancelled) == (1, statistics.requests - 1)
    assert len(server.requests) < 50


def test_many_users_survive_a_stopping_server(server: FaultyServer, other: FaultyServer) -> None:
    server.behave = lambda request: STOPPING
    with Recommender([server.url, other.url], timeout_s=10, retry=RetryPolicy(cool_down_s=60)) as recommender:
        got = recommender.recommend_many([RecommendRequest(["a"])] * 60, concurrency=8)
        statistics = recommender.statistics
    assert not [result for result in got if isinstance(result, RecommendError)]
    assert 1 <= statistics.retries <= 16


def test_many_users_back_off_on_a_single_address(server: FaultyServer) -> None:
    faults = [STOPPING, STOPPING]
    server.behave = lambda request: faults.pop() if faults else None
    with Recommender(server.url, timeout_s=10) as recommender:
        got = recommender.recommend_many([RecommendRequest(["a"])] * 4, concurrency=2)
    attempts = [result.attempts for result in got if not isinstance(result, RecommendError)]
    assert len(attempts) == 4
    assert sum(attempts) == 6


def test_no_users_no_requests(server: FaultyServer) -> None:
    with Recommender(server.url) as recommender:
        assert recommender.recommend_many([]) == []
    assert not server.requests


def test_a_recommender_serves_many_threads(server: FaultyServer, other: FaultyServer) -> None:
    server.behave = other.behave = lambda request: answer([ids_of(inputs(request)["history"])[0].decode()])
    with Recommender([server.url, other.url], timeout_s=10) as recommender:
        with futures.ThreadPoolExecutor(8) as threads:
            got = list(threads.map(lambda n: recommender.recommend([n]).item_ids, range(200)))
        assert recommender.statistics.requests == 200
    assert got == [(str(n),) for n in range(200)]


# --- the client as an object ---


@pytest.mark.parametrize(
    "urls",
    [
        *["", [], " , ", "http://localhost:8000", ["grpc://a:8001"], "localhost", "a:8001,b", "a:port", "a:0", ":8001"],
        *["a:99999", "a b:8001", "-1", ["a:8001", 8001], [None]],
    ],
)
@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender, KnowledgeWriter])
def test_addresses_that_cannot_be_used_are_refused(urls: Any, kind: Any) -> None:
    with pytest.raises(ValueError, match="host:port"):
        kind(urls)


@pytest.mark.parametrize("urls", [None, 8001, b"localhost:8001"])
def test_what_is_no_address_at_all_is_refused(urls: Any) -> None:
    with pytest.raises(ValueError, match=f"the addresses are {urls!r}"):
        Recommender(urls)


@pytest.mark.parametrize(
    "url", ["a:8001", "a_b.c-d:8001", "10.0.0.1:8001", "[::1]:8001", "::1", "dns:///a:8001", "unix:/run/a.socket"]
)
def test_addresses_that_grpc_takes_are_taken(url: str) -> None:
    assert split_urls(url) == (url,)
    assert split_urls("a", tls=True) == ("a",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timeout_s": 1e9}, "timeout_s: 1000000000.0 .* below 1000000"),
        ({"timeout_s": float("nan")}, "timeout_s: nan"),
        ({"timeout_s": "5"}, "timeout_s: '5' is a str"),
        ({"timeout_s": None}, "timeout_s: None is a NoneType"),
        ({"model": ""}, "model is ''"),
        ({"model": None}, "model is None"),
        ({"tls": "true"}, "tls is 'true', a str; give True or False"),
        ({"tls": None}, "tls is None"),
        ({"metadata": {"x-tenant": "shop"}}, "metadata holds a str"),
        ({"metadata": "x-tenant"}, "metadata holds a str"),
        ({"metadata": [("X-Tenant", "shop")]}, "metadata key 'X-Tenant'"),
        ({"metadata": [("x-tenant", 5)]}, "metadata 'x-tenant': its value is a int; give text"),
        ({"metadata": [("x-tenant", "caf\u00e9")]}, "is not printable ASCII"),
        ({"metadata": [("x-tenant-bin", "shop")]}, "give bytes"),
    ],
)
@pytest.mark.parametrize("kind", [Recommender, AsyncRecommender, KnowledgeWriter])
def test_arguments_that_cannot_be_used_are_refused(arguments: dict[str, Any], words: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=words):
        kind("localhost:8001", **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recommender("a:1", retry=3), "retry is 3, a int; give a RetryPolicy"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_attempts="3"), "max_attempts is '3', a str"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_attempts=2.5), "max_attempts is 2.5, a float"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(max_attempts=0), "max_attempts is 0; it must be at least 1"),
        (lambda: RetryPolicy(backoff_s="1"), "backoff_s is '1', a str"),  # type: ignore[arg-type]
        (lambda: RetryPolicy(budget_ratio=float("nan")), "budget_ratio is nan"),
        (lambda: RetryPolicy(cool_down_s=-1), "cool_down_s is -1; it must not be negative"),
        (lambda: TlsOptions(ca_file=""), "ca_file is ''"),
        (lambda: TlsOptions(ca_file=5), "ca_file is 5"),  # type: ignore[arg-type]
        (lambda: KnowledgeWriter("a:1,b:2"), "more than one address"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 2.5}, "concurrency is 2.5, a float"),
        ({"concurrency": "8"}, "concurrency is '8', a str"),
        ({"concurrency": True}, "concurrency is True, a bool"),
        ({"return_exceptions": "false"}, "return_exceptions is 'false', a str; give True or False"),
    ],
)
def test_arguments_for_many_users_are_judged(server: FaultyServer, arguments: dict[str, Any], words: str) -> None:
    with Recommender(server.url) as recommender, pytest.raises(ValueError, match=words):
        recommender.recommend_many([], **arguments)


@pytest.mark.parametrize("timeout_s", [0, float("nan"), "5", 1e9])
def test_the_time_for_readiness_is_judged(server: FaultyServer, timeout_s: Any) -> None:
    with Recommender(server.url) as recommender, pytest.raises(ValueError, match="timeout_s"):
        recommender.readiness(timeout_s)


def test_a_text_request_names_a_user_or_an_item() -> None:
    with KnowledgeWriter("localhost:8001") as writer:
        for ask in (lambda: writer.user(None), lambda: writer.item(None)):  # type: ignore[arg-type]
            with pytest.raises(InvalidRequest, match="neither history nor item"):
                ask()
        with pytest.raises(InvalidRequest, match="max_new_tokens: '5' is a str"):
            writer.user([], max_new_tokens="5")  # type: ignore[arg-type]


def test_a_closed_client_says_so(server: FaultyServer) -> None:
    recommender = Recommender(server.url)
    recommender.close()
    with pytest.raises(RuntimeError, match="closed"):
        recommender.recommend(["a"])


# Many calls share one thread, which sees that the client is closed when the wait is over.
@pytest.mark.parametrize(("many", "backoff_s"), [(False, 20), (True, 1)])
def test_a_call_that_waits_for_its_retry_ends_when_the_client_is_closed(
    server: FaultyServer, many: bool, backoff_s: float
) -> None:
    server.behave = lambda request: STOPPING
    policy = RetryPolicy(backoff_s=backoff_s, backoff_max_s=backoff_s)
    recommender = Recommender(server.url, timeout_s=60, retry=policy)
    closing = threading.Timer(0.3, recommender.close)
    closing.start()
    started = time.monotonic()
    with pytest.raises(RecommendError, match="closed") as caught:
        if many:
            recommender.recommend_many([RecommendRequest(["a"])], return_exceptions=False)
        recommender.recommend(["a"])
    closing.join()
    assert time.monotonic() - started < 5
    assert (caught.value.code, caught.value.attempts) == ("CANCELLED", 1)
    assert recommender.statistics.failures == 1


def test_errors_name_the_place_and_survive_pickling() -> None:
    error = Unavailable("gone", "UNAVAILABLE", 3, "a:8001", "not retried: why")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is Unavailable
    assert str(copy) == str(error) == "UNAVAILABLE from a:8001 after 3 attempts: gone (not retried: why)"


def test_readiness_of_each_address(server: FaultyServer, other: FaultyServer, dead_url: str) -> None:
    other.ready = False
    with Recommender([server.url, other.url, dead_url]) as recommender:
        found = recommender.readiness()
    assert [address.ready for address in found] == [True, False, False]
    assert "not ready" in found[1].message
    assert "UNAVAILABLE" in found[2].message


# --- the command line ---


def test_cli_prints_a_table(server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.behave = lambda request: answer(["i1", "bad\x1b[31m"], sources=[0, 1])
    code = cli.main(
        ["recommend", "--url", server.url, "--history", "a,b", "--top-k", "2", "--exclude", "x", "--query", "shoes"]
    )
    out = capsys.readouterr().out.splitlines()
    sent = inputs(server.requests[0])
    assert code == 0
    assert out[0].split() == ["rank", "item", "score", "source"]
    assert out[1].split() == ["1", "i1", "-1.0000", "drafted"]
    assert out[2].split() == ["2", "bad\\x1b[31m", "-2.0000", "fallback"]
    assert "bundle-7" in out[3]
    assert set(sent) == {"history", "top_k", "exclude", "query"}
    assert ids_of(sent["history"]) == [b"a", b"b"]


def test_cli_prints_json(server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--history", "", "--allow-history", "--sheddable", "--json"]
    assert cli.main(["recommend", "--url", server.url, *words]) == 0
    assert server.requests[0].parameters["sheddable"].bool_param
    got = json.loads(capsys.readouterr().out)
    assert got["items"][0] == {"item_id": "i1", "score": -1.0, "source": "drafted"}
    assert got["bundle_version"] == "bundle-7"
    assert inputs(server.requests[0])["history"] == ("BYTES", [1, 0], b"")
    assert inputs(server.requests[0])["allow_history"] == ("BOOL", [1, 1], b"\x01")


def test_cli_as_a_program_reads_the_history_from_stdin(server: FaultyServer) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "genrec_client.cli", "recommend", "--url", server.url, "--history", "-"],
        check=False,
        input=b"a,1\r\n\nb\xff\n",
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert ids_of(inputs(server.requests[0])["history"]) == [b"a,1", b"b\xff"]


def test_cli_server_error_is_one_line_and_exit_code_1(server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.behave = lambda request: ("INVALID_ARGUMENT", "top_k: 0 is below 1,\nthe limit is 50")
    assert cli.main(["recommend", "--url", server.url, "--history", "a", "--top-k", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"genrec-client: INVALID_ARGUMENT from {server.url}: top_k: 0 is below 1, the limit is 50\n"
    )


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["recommend"],
        ["recommend", "--history", "a", "--top-k", "many"],
        ["recommend", "--history", "a", "--top-k", "99999999999"],
        ["recommend", "--history", "a", "--url", "http://x:8000"],
        ["recommend", "--history", "a", "--timeout-ms", "0"],
        ["recommend", "--history", "a", "--timeout-ms", "nan"],
        ["recommend", "--history", "a", "--timeout-ms", "1e12"],
        ["recommend", "--history", "a", "--url", ""],
        ["recommend", "--history", "a", "--url", "localhost"],
        ["recommend", "--history", "a", "--model", ""],
        ["recommend", "--history", "a", "--ca-file", ""],
        ["recommend", "--history", "a", "--ca-file", "/no/such/file"],
        ["recommend", "--history", "a", "--cert-file", "x"],
    ],
)
def test_cli_bad_usage_is_one_line_and_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = cli.main(argv)
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("genrec-client")


def test_cli_ready(server: FaultyServer, other: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ready", "--url", server.url]) == 0
    assert capsys.readouterr().out == f"{server.url}: ready\n"
    other.ready = False
    assert cli.main(["ready", "--url", f"{server.url},{other.url}"]) == 1
    assert capsys.readouterr().err == f"genrec-client: {other.url}: model 'recommend' is not ready\n"
