"""Times of calls that are to be compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Name = TypeVar("Name")
Call = TypeVar("Call")
Timed = TypeVar("Timed")


def in_turn(
    calls: Mapping[Name, Call],
    rounds: int,
    timed: Callable[[Call], Timed],
    warm_up: int = 1,
) -> dict[Name, list[Timed]]:
    """What `timed` says of every call, measured in turn, round by round, behind `warm_up` rounds that do not count."""
    times: dict[Name, list[Timed]] = {name: [] for name in calls}
    for number in range(-warm_up, rounds):
        for name, call in calls.items():
            spent = timed(call)
            if number >= 0:
                times[name].append(spent)
    return times


def each_ms(call: Callable[[int], object], count: int, seconds: float = math.inf) -> list[float]:
    """Milliseconds of every call, 0 to count - 1 in turn, once round and until the time is over at most."""
    spent, ends = [], time.monotonic() + seconds
    for at in range(count):
        began = time.perf_counter()
        call(at)
        spent.append(1e3 * (time.perf_counter() - began))
        if time.monotonic() > ends and len(spent) > 1:
            break
    return spent


def median_ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Median of the ratios of what was measured in the same rounds: a machine that slows down slows both."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def medians(
    calls: Mapping[Name, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, float]:
    """Median seconds of each call by `clock`, measured in turn, round by round; one more round before warms up."""

    def timed(call: Callable[[], object]) -> float:
        began = clock()
        call()
        return clock() - began

    return {name: statistics.median(spent) for name, spent in in_turn(calls, rounds, timed).items()}
