"""A plan as data: what `genrec plan --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from genrec.planning.deployment import Demand, Plan, Site
from genrec.planning.hardware import LIMITS
from genrec.planning.work import Batch, Precision, Shape, token_bound


def plan_report(shape: Shape, batch: Batch, site: Site, demand: Demand | None, plans: Sequence[Plan]) -> dict[str, Any]:
    """What was asked and what each decoder takes, for JSON.

    plans: one per decoder; of two, the draft head's and the beam search's, the speed-up too.
    """
    report: dict[str, Any] = {
        "shape": asdict(shape),
        "batch": asdict(batch),
        "site": asdict(site),
        "load": asdict(demand) if demand else None,
        "decoders": {plan.decoder: _decoder_report(shape, plan, site.precision) for plan in plans},
    }
    if len(plans) > 1:
        report["speed_up"] = _speed_up(shape, batch, *plans)
    return report


def _decoder_report(shape: Shape, plan: Plan, precision: Precision) -> dict[str, Any]:
    rows = list(zip(plan.parts, plan.part_ms, plan.limits, strict=True))
    return {
        "weight_bytes": shape.parameters(plan.decoder) * precision.weight,
        "parts": [
            {"stage": part.stage, "part": part.name, **asdict(part.work), "ms": spent, "limit": limit}
            for part, spent, limit in rows
        ],
        "engine_ms": plan.engine_ms,
        "ms_by_limit": {name: sum(ms for _, ms, limit in rows if limit == name) for name in LIMITS},
        "service_ms": list(plan.service_ms),
        "requests_per_s": plan.requests_per_s,
        "fleet": asdict(plan.fleet) if plan.fleet else None,
        "cost_per_million": plan.cost,
    }


def _speed_up(shape: Shape, batch: Batch, drafted: Plan, searched: Plan) -> dict[str, float]:
    """How many times faster the draft head is than beam search: by tokens, FLOPs, the engine's ms and all ms."""
    return {
        "tokens": token_bound(len(shape.levels), batch.tokens, batch.beam_width),
        "flops": searched.flops / drafted.flops,
        "engine": searched.engine_ms / drafted.engine_ms,
        "service": searched.service_ms[-1] / drafted.service_ms[-1],
    }
