"""Deployments that may serve a bundle best, and which of them does, by what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pydantic import Field

from genrec.reporting.machine import Section

NEAR = 1.05  # figures within this ratio count as the same


class Aim(str, Enum):
    """What comes first: the time of a request that is alone, or requests a second when many are under way."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


class Choice(Section):
    """A deployment of a bundle. precision: of `COMPUTES`; threads: of each instance."""

    engine: str
    precision: str
    threads: int = Field(ge=1)
    instances: int = Field(ge=1)

    @property
    def options(self) -> str:
        """For the command line of `genrec serve`."""
        return " ".join(f"--{name} {value}" for name, value in self.model_dump().items())


class Measured(Section):
    """What a choice took. p50_ms, p95_ms, p99_ms: of one request at a time. requests_per_s: with many under way.

    same: share of the ten best that are those of the first choice in float32; None where nothing was compared.
    refused: why it must not be used, "" if it may; the figures may be missing then.
    """

    choice: Choice
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    requests_per_s: float | None = None
    same: float | None = None
    refused: str = ""

    @property
    def costs(self) -> tuple[float, float] | None:
        """p50_ms, and seconds for each request with many under way: less is better. None if it must not be used."""
        if self.refused or not self.p50_ms or not self.requests_per_s:
            return None
        return self.p50_ms, 1 / self.requests_per_s


@dataclass(frozen=True)
class Wanted:
    """What is given, so that only the rest is chosen. precision: "auto" or as of a choice. None: to be chosen."""

    precision: str = "auto"
    threads: int | None = None
    instances: int | None = None

    def allows(self, choice: Choice) -> bool:
        return (
            self.precision in ("auto", choice.precision)
            and self.threads in (None, choice.threads)
            and self.instances in (None, choice.instances)
        )


def candidates(cores: int, precisions: Sequence[tuple[str, str]], wanted: Wanted) -> list[Choice]:
    """What is worth measuring on `cores` processors. precisions: engines with what each computes in.

    One engine on all processors; one that leaves a processor to the other steps; and engines side by side that share
    all of them.
    """
    found: dict[Choice, None] = {}
    for engine, precision in precisions:
        for threads, instances in _shares(cores, wanted):
            choice = Choice(engine=engine, precision=precision, threads=threads, instances=instances)
            if wanted.allows(choice):
                found[choice] = None
    return list(found)


def _shares(cores: int, wanted: Wanted) -> Iterator[tuple[int, int]]:
    counts = [wanted.instances] if wanted.instances else [1 << power for power in range(cores.bit_length())]
    for instances in counts:
        yield wanted.threads or max(1, cores // instances), instances
        if instances == 1 and cores > 1:
            yield wanted.threads or cores - 1, 1


def chosen(measured: Iterable[Measured], aim: Aim) -> Measured:
    """The best of them: of those that are about as good as the best in the aim, the best in the other.

    Of what is still about the same, the first. Raises ValueError if none may be used.
    """
    measured = list(measured)
    able = [(one.costs, one) for one in measured if one.costs]
    if not able:
        why = "; ".join(dict.fromkeys(one.refused for one in measured if one.refused))
        raise ValueError(f"no deployment could be measured: {why or 'none is wanted'}")
    for way in (0, 1) if aim is Aim.LATENCY else (1, 0):
        best = min(costs[way] for costs, _ in able)
        able = [(costs, one) for costs, one in able if costs[way] <= NEAR * best]
    return able[0][1]
