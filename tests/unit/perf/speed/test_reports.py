"""The arithmetic of the benchmarks and their pages, on results whose figures are known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import CHECKPOINT, Bundle
from genrec.engines import open_engine
from genrec.model.nezha import NezhaModel
from perf.speed import bench, bench_report, catalog_size, history, load_report, overhead
from perf.speed.analyzer import Answers, Load
from perf.speed.cells import GRID, NAMED, Cell, synthetic
from tests.near import NEAR

PAGE = Path(__file__).parents[4] / "docs" / "performance.md"
MACHINE = {"processor": "a CPU", "cores": 2, "system": "Linux", "python": "3.11", "libraries": {"numpy": "1"}}
PROVENANCE = {"commit": "abc", "machine": MACHINE, "date": "2026-01-01T00:00:00+00:00"}


def figures(p50: float, throughput: float) -> dict:
    step = {"batch": 1.0, "total_ms": p50 / 4, "queue_ms": 0.1, "infer_ms": p50 / 5}
    return {
        "p50": p50, "p95": 2 * p50, "p99": 3 * p50, "mean": p50, "throughput": throughput,
        "server_cores": 1.5, "server_peak_mb": 300.0, "client_cores": 0.1,
        "steps": {"preprocessing": step, "backbone": step, "verifier": step},
    }  # fmt: skip


def test_the_published_cells_are_those_that_the_bench_measures_and_their_bounds_hold() -> None:
    rows = re.findall(r"^\| (\w+-h\d+-L\d-K\d+) \|.*\| ([\d.]+) \| (?:met|missed) \|$", PAGE.read_text(), flags=re.M)
    assert dict(rows) == {cell.name: f"{cell.bound:.2f}" for cell in NAMED}
    assert set(NAMED) <= set(GRID)


def test_reading_the_history_is_measured_on_the_bundles_own_graph(bundle: Bundle, tmp_path: Path) -> None:
    reading, without = (call(0) for call in history.engine_calls(bundle, 64, 1).values())
    expected = open_engine(bundle).draft(history.prompts_of(bundle)[:1])
    np.testing.assert_allclose(reading.scores, expected.scores, rtol=0, atol=NEAR)
    assert np.abs(reading.scores - without.scores).max() > 1e-3
    model = history.without_history(NezhaModel.load_checkpoint(bundle.path / CHECKPOINT))
    model.save_checkpoint(tmp_path / CHECKPOINT)
    for name in ("manifest.json", "catalog", "index"):
        (tmp_path / name).symlink_to(bundle.path / name)
    with pytest.raises(ValueError, match="reads no history"):
        history.engine_calls(Bundle(tmp_path), 64, 1)


def test_the_bound_is_the_ratio_of_tokens() -> None:
    assert Cell("3M", 20, 4, 512).bound == pytest.approx((80 + 3 * 512) / 85)
    assert Cell("3M", 20, 4, 50).bound == pytest.approx(2.706, abs=1e-3)


def test_every_synthetic_user_has_the_history_of_the_cell_and_every_item_its_own_semantic_id() -> None:
    dataset = synthetic(3, 17, items=500)
    assert (np.diff(dataset.interactions.offsets) == 18).all()  # the last one is the test item
    assert dataset.items.sids is not None and len(np.unique(dataset.items.sids, axis=0)) == 500


def test_throughput_counts_answers_until_the_last_one() -> None:
    answers = Answers(np.array([0.0, 0.1, 0.2, 0.3]), np.array([100.0, 100.0, 100.0, 200.0]))
    assert answers.throughput == pytest.approx(4 / 0.5)
    assert answers.percentile(50, 100) == [100.0, 200.0]


def test_a_load_is_closed_or_of_poisson_arrivals() -> None:
    assert "--concurrency-range" in Load(10, 4).flags()
    flags = Load(10, rate=12.5).flags()
    assert flags[flags.index("--request-rate-range") + 1] == "12.5" and "poisson" in flags


def test_the_page_of_the_bench_says_what_was_met(tmp_path: Path) -> None:
    cell = {
        "name": "3M-h20-L4-K50",
        "parameters": {"NEZHA": 3_000_000, "beam search": 3_000_000},
        "tokens": 80,
        "bound": 2.5,
        "settings": PROVENANCE,
        "runs": {
            "NEZHA": {"alone": [figures(p, 90.0) for p in (9.0, 10.0, 30.0)], "saturated": [figures(20.0, 100.0)]},
            "beam search": {"alone": [figures(20.0, 45.0)], "saturated": [figures(80.0, 50.0), figures(80.0, 80.0)]},
        },
    }
    (tmp_path / bench.RESULTS).write_text(json.dumps({"cells": [cell]}))
    times = {"prefill": [10.0], "head and beam": [2.0], "engine": [12.5], "verifier": [0.2], "ensemble": [15.0]}
    # Two turns, the second on a machine that has become half as fast: ratios stay.
    times = {name: [spent * 3, [2 * spent[0]]] for name, spent in times.items()}
    saturated = {"ensemble": [80.0], "engine, batch 1": [80.0], "engine, batch 4": [100.0]}
    one = {"name": "3M-h20-L4-K128", "parameters": 3_000_000, "times": times, "saturated": saturated}
    (tmp_path / overhead.RESULTS).write_text(json.dumps({"settings": PROVENANCE, "cells": [one]}))
    runs = {"10000": [figures(10.0, 1.0)], "10000000": [figures(10.3, 1.0)]}
    (tmp_path / catalog_size.RESULTS).write_text(json.dumps({"settings": PROVENANCE, "runs": runs}))

    page = bench_report.write_report(tmp_path, tmp_path / "page").read_text()
    latency, throughput = (row for row in page.splitlines() if row.startswith("| 3M-h20-L4-K50 "))
    assert latency.endswith("| 2.00 | 2.50 | 80% | met |")  # medians 20 and 10
    assert throughput.endswith("| 1.54 | 2.50 | 62% | missed |")  # 100 / 65
    assert "| 1.50 | 100.0 | 80.0 | 80% |" in page
    assert "+3.0%" in page
    for name in ("speed-up", "parts"):
        assert f"({name}.svg)" in page and (tmp_path / "page" / f"{name}.svg").exists()


def test_load_tests_are_compared_with_the_first(tmp_path: Path) -> None:
    settings = PROVENANCE | {"bundle": "b", "users": 3, "mean_history": 7.25}
    for name, slower in (("one", 1.0), ("two", 1.5)):
        closed = [
            {
                "load": {"requests": 9, "concurrency": n, "rate": None},
                "round": r,
                **figures(slower * n * (10.0 + r), 5.0),
            }
            for n in (1, 2)
            for r in range(3)
        ]
        opened = [{"load": {"concurrency": None, "rate": 2.5}, "round": 0, **figures(10.0, 2.5)}]
        locust = [
            {"shape": "spike", "users": 4, "requests": 30, "failures": 1, "retries": 2, **figures(12.0, 3.0)}
            | {"over_time": [{"users": 1, "rate": 1.0, "p50": None, "p99": 12.0}]}
        ]
        (tmp_path / name).mkdir()
        results = {"settings": settings, "closed": closed, "open": opened, "locust": locust}
        (tmp_path / name / load_report.RESULTS).write_text(json.dumps(results))
    page = load_report.write_report(tmp_path / "both", [tmp_path / "one", tmp_path / "two"]).read_text()
    rows = [row for row in page.splitlines() if row.startswith("| two | 2 ")]
    assert rows[0].startswith("| two | 2 | 33.0 | 66.0 | 99.0 | 5.0 |") and rows[0].endswith("| 1.50 |")
    assert "| one | 2.5 | 50% |" in page
    assert "| two | spike | 4 | 30 | 1 | 2 |" in page
    assert all((tmp_path / "both" / f"{name}.svg").exists() for name in ("latency", "steps", "locust"))
