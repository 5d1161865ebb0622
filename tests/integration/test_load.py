"""The load tests and the benchmark against real servers, for a second each: every figure is there and makes sense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.serving.repository import STEPS
from genrec.serving.triton import TritonServer
from genrec_builders.data import Dataset, write_dataset
from perf.speed import bench, cells, load, load_report
from perf.speed.analyzer import AnalyzerError, Load, find_analyzer, run_analyzer, write_requests
from tests.needs import missing


@pytest.fixture(scope="module", autouse=True)
def perf_analyzer() -> None:
    try:
        find_analyzer()
    except AnalyzerError as error:
        missing(str(error))


def test_a_load_test_reports_every_load_with_real_histories(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "shop")
    app = typer.Typer()
    app.command()(load.main)
    words = [bundle.path, tmp_path / "out", "--data", tmp_path / "shop", "--users", 50, "--threads", 1]
    words += [
        "--concurrency",
        "1,3",
        "--arrivals",
        "0.5",
        "--seconds",
        1,
        "--rounds",
        2,
        "--shapes",
        "spike",
        "--locust-seconds",
        7,
    ]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    results = json.loads((tmp_path / "out" / load_report.RESULTS).read_text())
    assert [run["load"]["concurrency"] for run in results["closed"]] == [1, 3, 1, 3]
    for run in results["closed"]:  # Little's law: as many are under way as come in the time that one takes
        assert run["throughput"] * run["mean"] / 1e3 == pytest.approx(run["load"]["concurrency"], rel=0.5)
    assert results["open"] and all(run["load"]["rate"] for run in results["open"])
    for run in [*results["closed"], *results["open"]]:
        assert run["p50"] > 0
        assert set(run["steps"]) == set(STEPS) and run["server_cores"] > 0 and run["server_peak_mb"] > 50
        assert sum(step["total_ms"] for step in run["steps"].values()) < 1.5 * run["mean"] + 5
    alone = results["closed"][0]
    assert alone["steps"]["backbone"]["batch"] == 1.0
    (spike,) = results["locust"]
    assert spike["requests"] > 0 and spike["failures"] == 0
    assert len({row["users"] for row in spike["over_time"]}) > 1
    longest = max(map(len, json.loads((tmp_path / "out" / "histories.json").read_text())))
    assert longest > bundle.layout.max_history  # real ones, not cut
    page = (tmp_path / "out" / load_report.PAGE).read_text()
    assert "| spike |" in page and (tmp_path / "out" / "latency.svg").exists()


def test_a_cell_measures_both_systems_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(cells.SHAPES["3M"], hidden_size=32, intermediate_size=64, layers=1)
    monkeypatch.setitem(cells.SHAPES, "3M", tiny)
    cell = cells.Cell("3M", 20, 3, 10)
    result = bench.measure(cell, tmp_path, rounds=2, seconds=0.2, threads=1)
    assert result["bound"] == cell.bound
    for system in cells.DECODERS:
        for kind, concurrency in (("alone", 1), ("saturated", bench.SATURATING)):
            assert [run["load"]["concurrency"] for run in result["runs"][system][kind]] == [concurrency] * 2
    versions = {Bundle(path).manifest.training["decoder"] for path in (tmp_path / "bundles").iterdir()}
    assert versions == set(cells.DECODERS.values())


def test_poisson_arrivals_come_at_their_rate(server: TritonServer, bundle: Bundle, tmp_path: Path) -> None:
    write_requests(bundle, [np.arange(5, dtype=np.int32)], tmp_path / "requests.json")
    answers = run_analyzer(server.grpc_url, tmp_path / "requests.json", Load(120, rate=30.0), tmp_path / "raw")
    gaps = np.diff(answers.sent_s)
    assert 20 < 1 / gaps.mean() < 45
    assert 0.5 < gaps.std() / gaps.mean() < 2  # 1 for Poisson, 0 for a clock


def test_a_failed_request_ends_the_run_with_perf_analyzers_own_words(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_text('{"data": [{"histories": ["a"]}]}')
    with pytest.raises(AnalyzerError, match="perf_analyzer ended with status"):
        run_analyzer(server.grpc_url, tmp_path / "requests.json", Load(5, 1), tmp_path / "raw")
