"""The comparison end to end: two tiny models, one of each decoder, ranked by both engines."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from genrec.bundle import Bundle, seal_bundle
from genrec.catalog import Catalog
from genrec.cli.main import app, main
from genrec.evaluation.comparison import ComparisonSettings, depth_of, models_of
from genrec.evaluation.metrics import target_ranks
from genrec.evaluation.ranker import Ranker
from genrec.evaluation.results import RECORD, Results, this_run
from genrec.pipeline import Pipeline
from genrec_builders.build import write_catalog
from genrec_builders.data import Dataset, sample_users, split_leave_one_out, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop

USERS = 40


@pytest.fixture(scope="module")
def shop(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shop"
    write_dataset(dataset, path)
    return path


def compare(shop: Path, out: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["compare", str(shop), "--out", str(out), "--users", str(USERS), *map(str, words)])


def test_both_engines_rank_two_models_alike(bundle: Bundle, baseline: Bundle, shop: Path, tmp_path: Path) -> None:
    models = (
        "--model",
        f"nezha={bundle.path}",
        "--model",
        f"beam-search={baseline.path}",
        "--reference",
        "TIGER=0.106,0.080",
    )
    found = {}
    for engine in ("onnx", "torch"):
        out = tmp_path / engine
        done = compare(shop, out, *models, "--beam-widths", "20,64", "--engine", engine, "--batch-size", 8)
        assert done.exit_code == 0, done.output or done.exception
        assert "16 rankings" in done.output
        found[engine] = Results.load(out)
        page = (out / "report.md").read_text()
        assert all(name in page for name in ("nezha", "beam-search", "TIGER", "training.svg", "time.svg"))
    assert len(found["onnx"].record.differences) == 2 * 2 * 2 * 2
    for name, ranks in found["onnx"].ranks.items():
        assert (ranks == found["torch"].ranks[name]).mean() > 0.9, name  # near ties may swap
    for cell in found["onnx"].record.cells:
        assert cell.depth == min(50, cell.beam_width // 2)
        assert cell.metrics["ndcg@5"] <= cell.metrics["hit@5"] <= cell.metrics["hit@10"]
        assert "hit@50" not in cell.metrics
        assert cell.valid_drafts == 1.0 if cell.masked else cell.valid_drafts < 1.0
        assert 0 < cell.drafting_ms < cell.ms_per_user
    first, second = (found["onnx"].trained(name)[0] for name in found["onnx"].names)
    assert (first.decoder, first.seed, second.decoder, second.seed) == ("draft_head", 0, "beam_search", 1)
    assert second.curves is not None and len(second.curves["validation"]) == 6


def test_a_cell_is_what_the_bundle_serves(bundle: Bundle, dataset: Dataset, shop: Path, tmp_path: Path) -> None:
    done = compare(shop, tmp_path, "--model", f"nezha={bundle.path}", "--beam-widths", 64, "--masks", "on")
    assert done.exit_code == 0, done.output or done.exception
    results = Results.load(tmp_path)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, USERS)
    ranker = Ranker(Pipeline.open(bundle))
    for excluded in (False, True):
        cell = results.cells("nezha", (64, True, excluded))[0]
        rows = ranker.rank(histories, exclude_history=excluded, top_k=32).rows
        np.testing.assert_array_equal(results.ranks[cell.ranks], target_ranks(rows, targets))


def test_hit_50_comes_with_the_beams_for_it(bundle: Bundle, shop: Path, tmp_path: Path) -> None:
    words = "--engine", "torch", "--masks", "on", "--model", f"nezha={bundle.path}", "--model", f"same={bundle.path}"
    done = compare(shop, tmp_path, *words, "--beam-widths", "100", "--users", 400)  # some hits in every resample
    assert done.exit_code == 0, done.output or done.exception
    record = json.loads((tmp_path / RECORD).read_text())
    assert all(cell["metrics"]["hit@50"] >= cell["metrics"]["hit@10"] for cell in record["cells"])
    for difference in record["differences"]:  # a model against itself
        assert (difference["relative"], difference["low"], difference["high"]) == (0, 0, 0)


def test_two_calls_within_a_second_are_two_runs() -> None:
    assert this_run("onnx", "cpu", 16, 0) != this_run("onnx", "cpu", 16, 0)


def test_what_a_folder_holds_is_not_ranked_again(bundle: Bundle, baseline: Bundle, shop: Path, tmp_path: Path) -> None:
    words = "--engine", "torch", "--masks", "on"
    assert compare(shop, tmp_path / "a", *words, "--model", f"nezha={bundle.path}", "--beam-widths", 20).exit_code == 0
    before = Results.load(tmp_path / "a").record.cells
    both = *words, "--model", f"nezha={bundle.path}", "--model", f"rival={baseline.path}", "--beam-widths", "20,30"
    assert compare(shop, tmp_path / "a", *both).exit_code == 0
    grown = Results.load(tmp_path / "a")
    assert grown.record.cells[: len(before)] == before  # their times too
    assert len(grown.record.cells) == 8 and len(grown.record.runs) == 2
    assert compare(shop, tmp_path / "b", *both).exit_code == 0
    assert Results.load(tmp_path / "b").record.differences == grown.record.differences
    for wrong, message in (
        (("--engine", "onnx"), "was ranked with engine torch"),
        (("--seed", 3), "ranks other users"),
    ):
        done = compare(shop, tmp_path / "a", *both, *wrong)
        assert message in str(done.exception)


def test_what_cannot_be_compared_is_refused_in_one_line(bundle: Bundle, shop: Path, tmp_path: Path) -> None:
    good, out = f"nezha={bundle.path}", tmp_path / "out"
    for words, message in (
        (["--model", "nezha"], "write NAME=BUNDLE"),
        (["--model", f"a/b={bundle.path}"], "write NAME=BUNDLE"),
        (["--model", f"nezha={bundle.path},"], "write NAME=BUNDLE"),
        (["--model", f"nezha={tmp_path / 'nowhere'}"], r"nowhere/manifest.json: is missing"),
        (["--model", f"nezha={bundle.path},{bundle.path}"], "same weights are given twice"),
        (["--model", good, "--beam-widths", "19"], "20 or more"),
        (["--model", good, "--beam-widths", "20,many"], "write whole numbers"),
        (["--model", good, "--masks", "maybe"], "neither on nor off"),
        (["--model", good, "--engine", "other"], "engine 'other' is unknown"),
        (["--model", good, "--device", "cuda"], "needs the torch engine"),
        (["--model", good, "--reference", "TIGER=1"], "write NAME=HIT,NDCG"),
    ):
        done = compare(shop, out, *words)
        assert re.search(message, str(done.exception)), (words, done.output, done.exception)
        assert "\n" not in str(done.exception)
    assert not out.exists()


def test_another_catalogue_is_refused(bundle: Bundle, bundle_copy: Path, shop: Path, tmp_path: Path) -> None:
    write_dataset(make_demo_shop(n_items=300, n_users=60, seed=2), tmp_path / "other")
    done = compare(tmp_path / "other", tmp_path / "out", "--model", f"a={bundle.path}")
    assert "its catalogue of 400 items is not the 300 items of the data" in str(done.exception)

    ours = bundle.catalog
    without_one = np.arange(len(ours)) != ours.popular_rows[-1]
    ids = [item_id.decode() for item_id in ours.item_ids]
    catalog = Catalog.build(ids, ours.sids, ours.popularity, without_one)
    history = ours.popular_rows[:5]
    write_catalog(bundle_copy, bundle.space, bundle.layout, catalog, bundle.manifest.beam_width, history)
    fields = bundle.manifest.model_dump(exclude={"format_version", "files", "catalog"})
    seal_bundle(bundle_copy, **fields, catalog={"version": 2, "items": len(ours), "available": len(ours) - 1})
    done = compare(shop, tmp_path / "out", "--model", f"a={bundle.path}", "--model", f"b={bundle_copy}")
    assert f"its available items are not those of {bundle.path}" in str(done.exception)


def test_an_error_of_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, shop: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["genrec", "compare", str(shop), "--out", str(tmp_path / "o"), "--model", "bad"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.strip().splitlines() == [
        "error: model 'bad': write NAME=BUNDLE or NAME=BUNDLE,BUNDLE,... with one bundle per seed"
    ]


def test_models_are_read_from_texts() -> None:
    found = models_of(["nezha=a,b", "beam search=c", "nezha=d"])
    assert found == {"nezha": [Path("a"), Path("b"), Path("d")], "beam search": [Path("c")]}


def test_the_depth_of_a_ranking() -> None:
    assert [depth_of(beams) for beams in (16, 20, 50, 99, 100, 512)] == [10, 10, 25, 49, 50, 50]
    with pytest.raises(ValueError, match="name on, off or both"):
        ComparisonSettings(masks=())
