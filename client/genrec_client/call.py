"""One user's call across its attempts: everything about it except sending, so that every kind of client shares it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from genrec_client import wire
from genrec_client.addresses import AddressPool
from genrec_client.arguments import seconds_problem
from genrec_client.errors import DeadlineExceeded, InvalidRequest, RecommendError
from genrec_client.recommendations import Recommendations
from genrec_client.retry import Failure, RetryBudget, RetryPolicy, classify, decide, error_of
from genrec_client.statistics import Counters

if TYPE_CHECKING:
    from genrec_client.tracing import CallSpan


@dataclass(frozen=True)
class CallContext:
    """What all calls of a client share."""

    urls: Sequence[str]
    pool: AddressPool
    policy: RetryPolicy
    budget: RetryBudget
    counters: Counters
    metadata: tuple[tuple[str, str], ...] = ()
    begin_span: Callable[[wire.InferRequest], CallSpan] | None = None
    closed: threading.Event = field(default_factory=threading.Event)


class Call:
    """The state of one call: its message, its deadline, the addresses it has tried.

    Repeat `begin_attempt`, send `message` with `metadata` to that address, then `succeed` or `fail`; or `abandon` it in
    between. Not thread-safe: a call belongs to the thread that drives it.
    """

    def __init__(self, context: CallContext, message: wire.InferRequest, timeout_s: float) -> None:
        if (problem := seconds_problem("timeout_s", timeout_s)) is not None:
            raise InvalidRequest(problem, "INVALID_ARGUMENT")
        self.message = message
        self._context = context
        self._started = time.monotonic()
        self._deadline = self._started + timeout_s
        self._attempts = 0
        self._address = -1
        self._tried: set[int] = set()
        self.metadata = context.metadata
        self._span = None if context.begin_span is None else context.begin_span(message)
        if self._span is not None:
            self.metadata += self._span.metadata

    def begin_attempt(self) -> tuple[int, float]:
        """Choose where the next attempt goes and how long it may take.

        Returns the index of the address, and the gRPC timeout: the seconds that remain of the call's one deadline.
        Raises DeadlineExceeded if nothing remains, and RecommendError (CANCELLED) if the client was closed since the
        last attempt.
        """
        context = self._context
        remaining_s = self._deadline - time.monotonic()
        if self._attempts == 0:
            context.counters.count_request()
            context.budget.earn()
        else:
            if context.closed.is_set():
                raise self._failed(RecommendError("the client was closed", "CANCELLED", self._attempts, self._url))
            if remaining_s <= 0:
                raise self._failed(
                    DeadlineExceeded(
                        "the deadline passed before the retry", "DEADLINE_EXCEEDED", self._attempts, self._url
                    )
                )
            context.counters.count_retry()
        self._address = context.pool.pick(self._tried)
        self._tried.add(self._address)
        self._attempts += 1
        wire.set_timeout(self.message, remaining_s)
        return self._address, remaining_s

    def succeed(self, response: wire.InferResponse) -> Recommendations:
        """The answer of the last attempt; RecommendError when it breaks the wire contract."""
        latency_ms = (time.monotonic() - self._started) * 1e3
        try:
            answer = wire.parse_response(response, latency_ms, self._attempts)
        except RecommendError as error:
            raise self._failed(error) from error.__cause__
        self._end("OK")
        return answer

    def fail(self, code: str, message: str) -> float:
        """Note that the last attempt failed.

        code, message: the gRPC status, by name, and its message. Returns the seconds to wait before the next attempt.
        Raises RecommendError if the call ends here.
        """
        context = self._context
        failure = classify(code, message)
        fresh = False
        if failure is Failure.GONE:
            context.pool.set_aside(self._address)
            fresh = context.pool.has_fresh(self._tried)
        decision = decide(
            failure,
            context.policy,
            attempts=self._attempts,
            remaining_s=self._deadline - time.monotonic(),
            fresh_address=fresh,
            jitter=random.random(),
        )
        reason = decision.reason
        if decision.retry:
            if context.budget.spend():
                return decision.delay_s
            context.counters.count_refused_retry()
            reason = "not retried: the retry budget is spent"
        raise self._failed(error_of(failure, message, code, self._attempts, self._url, reason))

    def abandon(self) -> None:
        """Note that nobody waits for this call any more; it is not a failure."""
        if self._attempts:
            self._context.counters.count_cancelled()
        self._end("CANCELLED")

    def _failed(self, error: RecommendError) -> RecommendError:
        self._context.counters.count_failure()
        self._end(error.code)
        error.request_id = self.message.id
        return error

    def _end(self, code: str) -> None:
        if self._span is not None:
            self._span.end(code, self._attempts, self._url if self._attempts else "")
            self._span = None

    @property
    def _url(self) -> str:
        return self._context.urls[self._address]
