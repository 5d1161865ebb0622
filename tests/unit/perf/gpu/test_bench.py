"""The GPU benchmark on a CPU: the same way through, without CUDA graphs and events; and what its page says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.planning.work import PREFILL, Part, Work
from genrec.reporting.self_check import StepFailed
from genrec_builders.config import BackboneShape
from genrec_builders.data import Dataset, write_dataset
from perf.gpu import bench as gpu
from perf.gpu import precision
from perf.gpu import report as gpu_report

CALLS = {f"{part}, {way}" for part in ("prefill", "head", "engine", "beam search") for way in ("eager", "graph")}


def run(main: Any, *words: object) -> Any:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_script_measures_checks_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SHAPES, "tiny", BackboneShape(hidden_size=32, intermediate_size=48, layers=2, kv_heads=2))
    words = ("--device", "cpu", "--shapes", "tiny", "--tokens", "20,31", "--beams", 12, "--batches", 2, "--rounds", 2)
    done = run(gpu.main, tmp_path, *words, "--levels", "9,16,12")
    assert done.exit_code == 0, done.output
    raw = json.loads((tmp_path / gpu_report.RESULTS).read_text())
    assert [cell["name"] for cell in raw["cells"]] == ["tiny-P20-K12-B2", "tiny-P31-K12-B2"]
    for cell in raw["cells"]:
        assert set(cell["times"]) == CALLS and all(len(times) == 2 for times in cell["times"].values())
        assert cell["checks"]["graph"] == {"overlap": 1.0, "gap": 0.0}
        assert min(cell["limits"].values()) > 0
    assert len(raw["steps"]) == 5 and all(said.startswith("pass") for said in raw["steps"].values())
    page = (tmp_path / gpu_report.PAGE).read_text()
    assert "| tiny-P31-K12-B2 |" in page and "None of these cells has one." in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = run(gpu.main, tmp_path / "out")
    assert done.exit_code == 1 and "sees no GPU for cuda; --device cpu" in done.output
    assert not (tmp_path / "out").exists()


def test_unknown_shapes_and_kernels_are_named(tmp_path: Path) -> None:
    assert "8B: use one of 0.6B, 1.7B, tiny" in run(gpu.main, tmp_path, "--shapes", "0.6B,8B").output
    assert "slow: use one of default, flash, cudnn" in run(gpu.main, tmp_path, "--attention", "slow").output


def cell(tokens: int, batch: int, answer: float, head: float, prefill: float, shape: str = "1.7B") -> dict[str, Any]:
    times = {name: [1.0] for name in CALLS} | {"engine, graph": [answer, answer, 99.0]}
    times |= {"head, graph": [head], "prefill, graph": [prefill]}
    limits = {"prefill_flops": 12e12, "prefill_ms": 10.0, "head_ms": 0.1, "beam_search_ms": 20.0}
    place = {"shape": shape, "tokens": tokens, "beam": 256, "batch": batch, "depth": 3}
    return {"name": f"{shape}-{tokens}-{batch}", **place, "limits": limits, "times": times, "peak_gib": 3.25}


def test_targets_are_told_of_the_cells_that_have_them(tmp_path: Path) -> None:
    rates = {"bf16": 800e3, "float32": 50e3, "copy": 4000.0}
    cells = [cell(1000, 1, 8.5, 1.2, 8.0), cell(5000, 4, 140.0, 2.0, 20.0), cell(5000, 1, 30.0, 0.5, 30.0, "0.6B")]
    assert gpu_report.targets(cells, rates) == [
        ("an answer, 1000 tokens, batch 1, ms, at most 9", "8.50", "met"),
        ("head and beam, 1000 tokens, batch 1, ms, at most 1", "1.20", "missed"),
        ("an answer, 5000 tokens, batch 4, ms, at most 135", "140.00", "missed"),
        ("prefill, 5000 tokens, batch 4, share, at least 0.6", "0.75", "met"),  # 12 TFLOP in 20 ms, of 800 TFLOP/s
    ]
    machine = {"processor": "a CPU", "libraries": {"torch": "2"}}
    settings = {"device": "a GPU", "rounds": 3, "attention": "default", "date": "today", "commit": "abc"}
    raw = {"settings": settings | {"machine": machine}, "rates": rates, "cells": cells, "steps": {"device": "pass"}}
    (tmp_path / gpu_report.RESULTS).write_text(json.dumps(raw))
    page = gpu_report.write_report(tmp_path).read_text()
    assert "| an answer, 5000 tokens, batch 4, ms, at most 135 | 140.00 | missed |" in page
    assert "| 0.6B-5000-1 | 400.0 | 50% | 33% | 20% | 2000% |" in page


def test_the_mask_hides_half_of_a_prefills_attention_and_of_nothing_else() -> None:
    assert gpu.causal(Part(PREFILL, "attention", Work(10, 7))).work == Work(5, 7)
    assert gpu.causal(Part(PREFILL, "projections", Work(10, 7))).work == Work(10, 7)


@pytest.mark.parametrize(("limit", "verdict"), [(0.9, "pass"), (1.01, "FAIL")])  # of a model trained for two epochs
def test_a_bundle_in_half_precision_is_judged(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, verdict: str
) -> None:
    monkeypatch.setattr(precision, "OVERLAP", limit)
    monkeypatch.setattr(precision, "NDCG_CHANGE", 0.5)
    write_dataset(dataset, tmp_path / "data")
    words = bundle.path, tmp_path / "data", tmp_path / "out", "--users", 60, "--device", "cpu"
    done = run(precision.main, *words)
    found = json.loads((tmp_path / "out" / precision.RESULTS).read_text())
    assert set(found) == {"settings", "steps", "bf16"}
    assert found["bf16"]["overlap"] < 1 or found["bf16"]["ndcg_change"] != 0, "this ran in float32"
    assert found["steps"]["bf16"].startswith(verdict) and done.exit_code == (verdict == "FAIL")


def test_rankings_are_compared_with_those_of_float32() -> None:
    reference = np.arange(20).reshape(2, 10)
    ours = reference.copy()
    ours[0, [0, 1]] = ours[0, [1, 0]]  # the first two change places
    ours[1, 9] = 99
    found = precision.compare(ours, reference, np.array([0, 10]))
    assert found["overlap"] == pytest.approx(0.95) and found["same_first"] == 0.5
    assert found["ndcg_change"] == pytest.approx((1 / np.log2(3) + 1) / 2 - 1)
    with pytest.raises(StepFailed, match=r"wanted 98% and at most 0\.5%"):
        precision.verdict(found)
    assert "100.00% of the ten best" in precision.verdict(precision.compare(reference, reference, np.array([0, 10])))
