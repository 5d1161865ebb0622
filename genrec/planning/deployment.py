"""From the work of a batch to latency, replicas and cost, for a decoder on given hardware under a given demand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from genrec.planning.hardware import Hardware
from genrec.planning.queueing import MAX_SERVERS, MAX_UTILISATION, latency_quantiles, utilisation
from genrec.planning.work import Batch, Engine, Part, Precision, Shape, total, work_of

SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Site:
    """What a replica is, and costs.

    fixed_ms: what serving adds to every batch; the replica is taken to be busy with it. price: of a replica's hour, in
    any currency, None where it is not asked for.
    """

    hardware: Hardware
    engine: Engine
    precision: Precision
    fixed_ms: float = 0.0
    price: float | None = None

    def __post_init__(self) -> None:
        if self.fixed_ms < 0 or (self.price is not None and self.price < 0):
            raise ValueError(f"fixed-ms {self.fixed_ms} and price {self.price} must not be negative")


@dataclass(frozen=True)
class Demand:
    """Requests per second of all replicas together, and what they must keep to.

    utilisation: share of their time that replicas may work, at most. p99_ms: that 99 % of the answers take at most, or
    None. spare: replicas beyond those that are needed; they get no requests here, so that any one may be lost.
    """

    rate: float
    utilisation: float = 0.7
    p99_ms: float | None = None
    spare: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate {self.rate} requests/s must be above 0")
        if not 0 < self.utilisation <= MAX_UTILISATION:
            raise ValueError(f"utilisation {self.utilisation} must be above 0 and at most {MAX_UTILISATION}")
        if self.spare < 0:
            raise ValueError(f"spare {self.spare} must not be negative")


@dataclass(frozen=True)
class Fleet:
    """What a demand takes. p50_ms, p95_ms, p99_ms: from arrival to answer, with the spare replicas lost."""

    replicas: int
    spare: int
    utilisation: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Plan:
    """A decoder on a site. service_ms: of a batch of 1, 2, .. requests. cost: per million requests.

    Without a demand, `fleet` is None and `cost` is that of replicas which are busy all the time.
    """

    decoder: str
    parts: tuple[Part, ...]
    part_ms: tuple[float, ...]
    limits: tuple[str, ...]
    service_ms: tuple[float, ...]
    requests_per_s: float
    fleet: Fleet | None
    cost: float | None

    @property
    def engine_ms(self) -> float:
        """Of a full batch, without what serving adds."""
        return sum(self.part_ms)

    @property
    def flops(self) -> int:
        """Of a full batch."""
        return total(self.parts).flops


def plan(shape: Shape, decoder: str, batch: Batch, site: Site, demand: Demand | None) -> Plan:
    """Plan batches of up to `batch.size` requests. Raises ValueError for what no number of replicas reaches."""
    hardware = site.hardware
    by_size = [
        work_of(shape, decoder, replace(batch, size=size), site.precision, site.engine)
        for size in range(1, batch.size + 1)
    ]
    service = tuple(site.fixed_ms + hardware.total_ms(parts) for parts in by_size)
    parts = by_size[-1]
    per_replica = 1e3 * batch.size / service[-1]
    fleet = fleet_for(demand, service) if demand else None
    cost = None
    if site.price is not None:
        replicas_per_rate = (fleet.replicas + fleet.spare) / demand.rate if demand and fleet else 1 / per_replica
        cost = site.price * replicas_per_rate * 1e6 / 3600
    return Plan(
        decoder=decoder,
        parts=parts,
        part_ms=tuple(hardware.ms(part.work) for part in parts),
        limits=tuple(hardware.limit(part.work) for part in parts),
        service_ms=service,
        requests_per_s=per_replica,
        fleet=fleet,
        cost=cost,
    )


def fleet_for(demand: Demand, service_ms: tuple[float, ...]) -> Fleet:
    """The fewest replicas that keep to `demand`. service_ms: of a batch of 1, 2, .. requests."""
    if demand.p99_ms is not None and demand.p99_ms < service_ms[0]:
        raise ValueError(
            f"p99-ms {demand.p99_ms:g} is below the {service_ms[0]:.3g} ms that one request takes alone: no number of "
            "replicas reaches it; take faster hardware, a shorter prompt or a narrower beam"
        )
    rate = demand.rate / 1e3  # per millisecond

    def enough(count: int) -> bool:
        if rate * service_ms[-1] > demand.utilisation * len(service_ms) * count:
            return False
        return demand.p99_ms is None or latency_quantiles(rate, service_ms, count, (0.99,))[0] <= demand.p99_ms

    high = 1
    while not enough(high):
        if high == MAX_SERVERS:
            raise ValueError(
                f"rate {demand.rate:g} requests/s needs more than {MAX_SERVERS} replicas at {service_ms[-1]:.3g} ms "
                f"for {len(service_ms)} at once: plan a share of the load, or faster replicas"
            )
        high = min(2 * high, MAX_SERVERS)
    low = high // 2  # too few, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    quantiles = latency_quantiles(rate, service_ms, high, SHARES)
    return Fleet(high, demand.spare, utilisation(rate, service_ms, high), *quantiles)
