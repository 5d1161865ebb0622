"""How long requests wait: Poisson arrivals, fixed service times, c servers that share one queue in order of arrival.

One request at a time is the M/D/c queue, whose waiting time has an exact distribution without alternating sums (Franx,
"A simple solution for the M/D/c waiting time distribution", Operations Research Letters 29, 2001). Batches, where a
free server takes what waits up to a limit, have no such formula: they are simulated.

Replicas behind a load balancer that cannot see who is free do not share a queue: they wait longer than this.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MAX_UTILISATION = 0.98  # the chain's states are as many as 1 / (1 - utilisation)
MAX_SERVERS = 1000
_REQUESTS = 100_000  # of a simulation: 900 of them beyond the 99th percentile
_WARM_UP = 0.1  # of a simulation, not counted: it starts empty


def latency_quantiles(
    rate: float, service: Sequence[float], servers: int, shares: Sequence[float], seed: int = 0
) -> list[float]:
    """Time from arrival to answer that each of `shares` of the requests stays under.

    rate: requests per unit of time. service: time of a batch of 1, 2, .. requests. seed: of the simulation of batches.
    Raises ValueError for more load than MAX_UTILISATION, where a batch is full, or more than MAX_SERVERS.
    """
    if len(service) == 1:
        return [service[0] * (1 + _wait_quantile(rate * service[0], servers, share)) for share in shares]
    utilisation(rate, service, servers)
    return [float(x) for x in np.quantile(simulate(rate, service, servers, _REQUESTS, seed), shares)]


def utilisation(rate: float, service: Sequence[float], servers: int) -> float:
    """Share of the time that servers work if all batches are full. Raises ValueError as `latency_quantiles`."""
    found = rate * service[-1] / (len(service) * servers)
    if found > MAX_UTILISATION:
        raise ValueError(f"utilisation {found:.3f} of {servers} servers is above {MAX_UTILISATION}: add servers")
    if servers > MAX_SERVERS:
        raise ValueError(f"{servers} servers are more than the {MAX_SERVERS} that can be planned: plan a share of them")
    return found


def wait_distribution(load: float, servers: int, time: float) -> float:
    """M/D/c: probability that a request waits at most `time`, in service times. load: arrivals per service time.

    For k - 1 <= x < k: the sum over j < kc of Q(kc - 1 - j) Poisson(j; load (k - x)), where Q(m) is the probability
    that at most m requests wait.
    """
    last = math.floor(time) + 1
    arrivals = _poisson(load * (last - time), last * servers)
    queue = _queue_distribution(load, servers)
    at_most = np.minimum(np.arange(last * servers)[::-1], queue.size - 1)
    return float(arrivals @ queue[at_most])


def simulate(rate: float, service: Sequence[float], servers: int, requests: int, seed: int = 0) -> np.ndarray:
    """Times from arrival to answer, float64 [90 % of requests], of servers that take all that waits, up to a batch.

    Arguments as in `latency_quantiles`.
    """
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests)).tolist()
    free, sizes, ends, taken = [0.0] * servers, [], [], 0
    while taken < requests:
        start = max(free[0], arrivals[taken])
        waiting = bisect_right(arrivals, start, taken, min(taken + len(service), requests)) - taken
        heapq.heapreplace(free, start + service[waiting - 1])
        sizes.append(waiting)
        ends.append(start + service[waiting - 1])
        taken += waiting
    return (np.repeat(ends, sizes) - arrivals)[int(_WARM_UP * requests) :]


def _wait_quantile(load: float, servers: int, share: float) -> float:
    """The waiting time, in service times, that `share` of the requests stay under."""
    low, high = 0.0, 1.0
    if wait_distribution(load, servers, 0.0) >= share:
        return 0.0
    while wait_distribution(load, servers, high) < share:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if wait_distribution(load, servers, middle) < share else (low, middle)
    return high


@lru_cache(maxsize=64)
def _queue_distribution(load: float, servers: int) -> np.ndarray:
    """Q(m), m = 0 ..: the probability that at most m requests wait, until it is 1.

    Whoever is served now is gone one service time later, and none who starts meanwhile: the number in the system goes
    from n to max(n - c, 0) + Poisson(load). Its stationary distribution, by one linear system.
    """
    busy = utilisation(load, (1.0,), servers)
    # The tail falls like exp(-m r), load (exp(r) - 1) = c r; r is nearly 2 (1 - busy) / busy where that is small.
    decay = min(2 * (1 - busy) / busy, 1.0) / 1.5
    states = servers + math.ceil(30 / decay) + 10 * math.ceil(math.sqrt(load)) + 20
    arrivals = _poisson(load, states)
    left = np.maximum(np.arange(states) - servers, 0)
    grown = np.arange(states)[:, None] - left
    step = np.where(grown >= 0, arrivals[grown], 0.0)
    step -= np.eye(states)
    step[-1] = 1.0  # one equation follows from the others; the probabilities' sum takes its place
    found = np.linalg.solve(step, np.eye(states)[-1])
    return np.minimum(np.cumsum(found)[servers:], 1.0)


def _poisson(mean: float, count: int) -> np.ndarray:
    """Probabilities of 0 .. count - 1 events."""
    number = np.arange(1, count)
    logs = np.concatenate([[0.0], np.cumsum(math.log(mean) - np.log(number))])
    return np.exp(logs - mean)
