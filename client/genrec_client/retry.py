"""Whether to try again: the kinds of failure, the decision, and the budget that bounds retries over all calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum, auto

from genrec_client.arguments import require_count, require_not_negative
from genrec_client.errors import DeadlineExceeded, InvalidRequest, Overloaded, RecommendError, Unavailable


class Failure(Enum):
    """What a failed attempt tells about the server."""

    GONE = auto()
    """Stopping, restarting or unreachable: another address may answer."""
    OVERLOADED = auto()
    """Its queue is full: more requests would make it worse."""
    EXPIRED = auto()
    """The time ran out, here or in the server's queue."""
    REFUSED = auto()
    """The request is wrong."""
    OTHER = auto()
    """Anything else, such as a failure inside the model."""


_ERRORS: dict[Failure, type[RecommendError]] = {
    Failure.GONE: Unavailable,
    Failure.OVERLOADED: Overloaded,
    Failure.EXPIRED: DeadlineExceeded,
    Failure.REFUSED: InvalidRequest,
    Failure.OTHER: RecommendError,
}


@dataclass(frozen=True)
class RetryPolicy:
    """How a `Recommender` tries again. Requests only read, so repeating one is always safe.

    max_attempts: requests sent at most for one call; 1 turns retries off. backoff_s: seconds before the first retry on
    an address that this call has already tried, doubled each time, and shortened at random by up to half; an address
    that is new to the call is tried at once. backoff_max_s: longest wait, in seconds. cool_down_s: seconds for which an
    address that failed is passed over while there are others.

    budget_ratio: retries that each call earns for all; 0.1 bounds them to 10 % extra requests. budget_reserve: retries
    at hand at the start, so that a client with few calls can retry at all. budget_capacity: retries that can be saved
    up, which bounds a burst of them.
    """

    max_attempts: int = 3
    backoff_s: float = 0.05
    backoff_max_s: float = 1.0
    cool_down_s: float = 1.0
    budget_ratio: float = 0.1
    budget_reserve: float = 10.0
    budget_capacity: float = 100.0

    def __post_init__(self) -> None:
        require_count("max_attempts", self.max_attempts)  # it counts the first attempt too
        for name in ("backoff_s", "backoff_max_s", "cool_down_s", "budget_ratio", "budget_reserve", "budget_capacity"):
            require_not_negative(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failed attempt.

    retry: whether to send the request again. delay_s: seconds to wait before that. reason: why not, "" when the failure
    itself says so.
    """

    retry: bool
    delay_s: float = 0.0
    reason: str = ""


def classify(code: str, message: str) -> Failure:
    """What a gRPC status means here.

    Triton says UNAVAILABLE for a server that stops, for a full queue and for a request that expired in the queue,
    NOT_FOUND for a model that is being unloaded as for one that does not exist, and INTERNAL for a model's process that
    died or stands still as for a defect; only the text tells them apart.

    code: the status name, such as "UNAVAILABLE". message: the status message.
    """
    text = message.lower()
    if code == "UNAVAILABLE":
        if "maximum queue size" in text:
            return Failure.OVERLOADED
        return Failure.EXPIRED if "timeout expired" in text else Failure.GONE
    if code == "NOT_FOUND":
        return Failure.GONE if "no available versions" in text else Failure.REFUSED
    if code == "INTERNAL" and "stub process" in text and "not healthy" in text:
        return Failure.GONE
    if code == "DEADLINE_EXCEEDED":
        return Failure.EXPIRED
    if code == "INVALID_ARGUMENT":
        return Failure.REFUSED
    if code == "RESOURCE_EXHAUSTED":
        # gRPC uses the same status for a message over the size limit.
        return Failure.REFUSED if "larger than max" in text else Failure.OVERLOADED
    return Failure.OTHER


def decide(
    failure: Failure, policy: RetryPolicy, *, attempts: int, remaining_s: float, fresh_address: bool, jitter: float
) -> Decision:
    """Whether a call is tried again, leaving the budget aside.

    attempts: requests sent so far, at least 1. remaining_s: seconds to the call's deadline. fresh_address: whether an
    address is left that this call has not tried and that is not cooling down. jitter: a random number in [0, 1).
    """
    if failure is not Failure.GONE:
        return Decision(retry=False)
    if attempts >= policy.max_attempts:
        return Decision(retry=False, reason=f"not retried: the limit is {policy.max_attempts} attempts")
    delay_s = 0.0
    if not fresh_address:
        delay_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** (attempts - 1)) * (1 - jitter / 2)
    if delay_s >= remaining_s:
        return Decision(retry=False, reason="not retried: the deadline is too near")
    return Decision(retry=True, delay_s=delay_s)


def error_of(
    failure: Failure, message: str, code: str, attempts: int, address: str = "", note: str = ""
) -> RecommendError:
    """The error that a call ends in after a failure."""
    return _ERRORS[failure](message, code, attempts, address, note)


class RetryBudget:
    """A token bucket over all calls of a client: each call puts `ratio` in, each retry takes 1 out.

    So over any number n of calls there are at most reserve + ratio * n retries, and a fleet of clients cannot
    multiply the load of a server that is already failing. Thread-safe.
    """

    def __init__(self, ratio: float, reserve: float, capacity: float) -> None:
        self._ratio = ratio
        self._capacity = max(reserve, capacity)
        self._tokens = reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count one call."""
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        with self._lock:
            # Ten times 0.1 is a little less than 1.
            if self._tokens < 1.0 - 1e-9:
                return False
            self._tokens -= 1.0
            return True
