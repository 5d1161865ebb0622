"""What a lower precision changes: an engine in bf16 or int8 against the same in float32, on users of a bundle's data.

python -m perf.gpu.precision build/shop-bundle build/shop build/precision
python -m perf.gpu.precision build/shop-bundle build/shop build/precision --engine openvino
python -m perf.gpu.precision build/shop-bundle build/shop build/precision --engine onnx

The PyTorch engine runs on a CPU too. On a GPU it is compared once more with CUDA graphs over buckets of lengths.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import torch
import typer

from genrec.bundle import Bundle
from genrec.cli.arguments import one_of
from genrec.engines import open_engine
from genrec.engines.base import Engine
from genrec.engines.buckets import Buckets
from genrec.evaluation.bootstrap import relative_difference
from genrec.evaluation.metrics import metrics, target_ranks, user_values
from genrec.evaluation.ranker import Ranker, require_catalog
from genrec.golden import check_drafts
from genrec.pipeline import Pipeline
from genrec.reporting.machine import provenance
from genrec.reporting.progress import track
from genrec.reporting.self_check import SelfCheck, StepFailed
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

RESULTS = "precision.json"
LOWER = {"torch": "bf16", "openvino": "bf16", "onnx": "int8"}
OVERLAP = 0.98  # at least: mean share of the ten best items of float32 that are among the ten best
NDCG_CHANGE = 0.005  # at most: of NDCG@10, relative


def compare(rows: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Rankings of the same users, int32 [E, 10] each, against each other and against targets, int32 [E]."""
    ours, theirs = metrics(rows, targets), metrics(reference, targets)
    overlap = np.mean([np.isin(b[b >= 0], a).mean() for a, b in zip(rows, reference, strict=True)])
    found = {
        "overlap": float(overlap),
        "same_first": float((rows[:, 0] == reference[:, 0]).mean()),
        "ndcg_change": ours["ndcg@10"] / theirs["ndcg@10"] - 1 if theirs["ndcg@10"] else 0.0,
    }
    paired = [user_values(target_ranks(ranked, targets), "ndcg@10") for ranked in (rows, reference)]
    if sure := relative_difference(*paired):
        found |= {"ndcg_change_low": sure.low, "ndcg_change_high": sure.high}
    for name in ("hit@10", "ndcg@10"):
        found |= {f"{name} lower": ours[name], f"{name} float32": theirs[name]}
    return found


def verdict(found: dict[str, float]) -> str:
    """What was found, in words. Raises StepFailed where it is not within the limits."""
    change = f"{found['ndcg_change']:+.2%}"
    if "ndcg_change_low" in found:
        change += f", 95 % interval {found['ndcg_change_low']:+.2%} to {found['ndcg_change_high']:+.2%}"
    said = (
        f"{found['overlap']:.2%} of the ten best items, {found['same_first']:.2%} of the first ones are the same; "
        f"NDCG@10 {found['ndcg@10 lower']:.4f} and {found['ndcg@10 float32']:.4f} ({change})"
    )
    if found["overlap"] < OVERLAP or abs(found["ndcg_change"]) > NDCG_CHANGE:
        raise StepFailed(f"{said}; wanted {OVERLAP:.0%} and at most {NDCG_CHANGE:.1%}")
    return said


def main(
    bundle_path: Annotated[Path, typer.Argument(help="The bundle.")],
    data: Annotated[Path, typer.Argument(help="The dataset that it was built from.")],
    out: Annotated[Path, typer.Argument(help=f"Folder for {RESULTS}.")],
    users: Annotated[int, typer.Option(min=1, help="Test users to rank.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Users at once.")] = 16,
    kind: Annotated[
        str, typer.Option("--engine", help="torch, openvino: bf16; onnx: int8.", callback=one_of(tuple(LOWER)))
    ] = "torch",
    device: Annotated[Optional[str], typer.Option(help="Of torch: cpu or cuda; a GPU if there is one.")] = None,
) -> None:
    """Rank with both and compare; exit status 1 if they differ by more than the limits."""
    device = device or ("cuda" if kind == "torch" and torch.cuda.is_available() else "cpu")
    bundle, dataset = Bundle(bundle_path), read_dataset(data)
    require_catalog(bundle, dataset.items.item_ids)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, users)
    checks, lower = SelfCheck(), LOWER[kind]

    def ranked(engine: Engine, name: str) -> np.ndarray:
        with track(name) as task:
            ranker = Ranker(Pipeline.open(bundle, engine), batch)
            return ranker.rank(histories, progress=lambda done: task(done, len(histories), "")).rows

    def opened(**options: Any) -> Engine:
        return open_engine(bundle, kind, **options, **({"device": device} if kind == "torch" else {}))

    options: dict[str, dict[str, Any]] = {lower: {}}
    if device.startswith("cuda"):
        options[f"{lower}, graphs"] = {"buckets": Buckets.up_to(bundle.layout.max_tokens, batch)}
    reference = ranked(opened(precision="f32"), "float32")
    for name, more in options.items():

        def check(name: str = name, more: dict[str, Any] = more) -> str:
            engine = opened(precision=lower, **more)
            check_drafts(bundle.golden, engine)
            checks.measured[name] = compare(ranked(engine, name), reference, targets)
            return verdict(checks.measured[name])

        checks.step(name, check)
    settings = {"bundle": bundle.manifest.bundle_version, "users": len(histories), "engine": kind, "device": device}
    out.mkdir(parents=True, exist_ok=True)
    results = {"settings": provenance(**settings), "steps": checks.steps, **checks.measured}
    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    raise typer.Exit(not checks.passed)


if __name__ == "__main__":
    typer.run(main)
