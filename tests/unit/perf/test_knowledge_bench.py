"""The benchmark of knowledge texts: every command works, on few texts of a model that was hardly trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from genrec.knowledge.model import KnowledgeModel
from genrec_builders.data import Dataset, write_dataset
from perf.knowledge import downstream
from perf.knowledge.compare import app
from perf.knowledge.runs import BASELINE, OURS, Of, held_out_requests

PLOTS = ("speed.svg", "calibration.svg")


@pytest.fixture(scope="module")
def folders(knowledge_folder: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    shop = tmp_path_factory.mktemp("bench") / "shop"
    write_dataset(dataset, shop)
    return [str(knowledge_folder), str(shop)]


@pytest.mark.slow
def test_compare_writes_tables_and_a_plot(folders: list[str], tmp_path: Path) -> None:
    options = ["--entities", "4", "--batch-sizes", "1,2", "--rounds", "2", "--threads", "1", "--of", "items"]
    result = CliRunner().invoke(app, ["compare", *folders, str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["texts"] == 4 and results["of"] == "items" and len(results["ablations"]) == 9
    assert all(len(cells) == 2 for cells in results["runs"].values())
    assert {cell["speed_up"] for cell in results["runs"][BASELINE]} == {1}
    for cells in results["runs"].values():
        for cell, base in zip(cells, results["runs"][BASELINE], strict=True):
            assert len(cell["rates"]) == 2 and min(cell["rates"]) <= cell["tokens_per_s"] <= max(cell["rates"])
            ratios = [ours / theirs for ours, theirs in zip(cell["rates"], base["rates"], strict=True)]
            assert min(ratios) <= cell["speed_up"] <= max(ratios)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables.count(f"| {BASELINE} |") == 1 + tables.count(f"| {OURS} |") == 4  # once as a column
    assert "Ours with one thing changed" in tables and "16 at once, ms for each: p50" in tables
    assert re.search(r"texts at once \|.*SuffixDecoding \|", tables) and "predicted chance" in tables
    assert results["calibration"]["1"] and all((tmp_path / "out" / plot).stat().st_size > 1000 for plot in PLOTS)


@pytest.mark.slow
def test_useless_pools_and_texts_alone_are_measured(folders: list[str]) -> None:
    options = ["--entities", "4", "--rounds", "1", "--threads", "1"]
    result = CliRunner().invoke(app, ["foreign", *folders, *options, "--batch-sizes", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("| pools of random tokens |") == 1
    result = CliRunner().invoke(app, ["alone", *folders, *options, "--pool-texts", "5,10"])
    assert result.exit_code == 0, result.output
    assert "Pools of 10 texts" in result.output and result.output.count(f"| {OURS} |") == 2


@pytest.mark.slow
def test_downstream_compares_written_texts_and_writes_them_once(folders: list[str], tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(downstream.main)
    words = [*folders, str(tmp_path), "--users", "100", "--max-new-tokens", "6"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / downstream.RESULTS).read_text())["rows"]
    assert [(row["texts"], row["against"]) for row in rows] == [
        ("greedy", "none"), ("relaxed", "none"), ("made-up", "none"), ("relaxed", "greedy"),
    ]  # fmt: skip
    assert all(row["low"] <= row["relative"] <= row["high"] and 0.3 < row["auc"] < 1 for row in rows)
    written = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert len(written) == 5
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert written == {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    for words[-1], words[-3], refused in (("7", "100", "max-new-tokens 6, now 7"), ("6", "90", "entities sha256")):
        other = CliRunner().invoke(app, words)
        assert isinstance(other.exception, ValueError) and refused in str(other.exception)


def test_users_and_items_are_those_held_out(folders: list[str]) -> None:
    model, shop = KnowledgeModel(Path(folders[0])), Path(folders[1])
    kinds = {of: [r.group.partition(":")[0] for r in held_out_requests(model, shop, 6, of)] for of in Of}
    assert kinds == {Of.both: ["user"] * 3 + ["item"] * 3, Of.users: ["user"] * 6, Of.items: ["item"] * 6}


@pytest.mark.slow
def test_equality_is_with_the_texts_of_transformers(folders: list[str]) -> None:
    result = CliRunner().invoke(app, ["equality", *folders, "--entities", "40", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert re.findall(r"batch (\d): 40 of 40 are the same", result.output) == ["1", "8"]


def test_a_pool_of_many_texts(folders: list[str]) -> None:
    result = CliRunner().invoke(app, ["pool", *folders, "--texts", "500"])
    assert result.exit_code == 0, result.output
    assert "500 texts" in result.output and "16 at once" in result.output and "peak memory" in result.output
