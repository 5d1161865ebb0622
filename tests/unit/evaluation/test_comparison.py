"""The comparison end to end: two tiny models, one of each decoder, ranked by both engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from genrec.bundle import Bundle, seal_bundle
from genrec.catalog import Catalog
from genrec.cli.main import app
from genrec.evaluation.comparison import ComparisonSettings, depth_of, models_of
from genrec.evaluation.metrics import target_ranks
from genrec.evaluation.ranker import Ranker
from genrec.evaluation.results import Results, this_run
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


def assert_same_ranks(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Targets' places, of engines that were opened apart: of forty users, two may have one that nearly ties."""
    assert (ours == theirs).mean() >= 0.95, name


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
        assert_same_ranks(ranks, found["torch"].ranks[name], name)
    for cell in found["onnx"].record.cells:
        assert cell.depth == {20: 10, 64: 32}[cell.beam_width]
        ranks = found["onnx"].ranks[cell.ranks]
        assert ranks.max() <= cell.depth
        assert cell.metrics["hit@10"] == pytest.approx(((0 < ranks) & (ranks <= 10)).mean())
        assert "hit@50" not in cell.metrics
        if cell.masked:
            assert cell.valid_drafts == 1.0
        else:
            assert cell.valid_drafts < 1.0
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
        assert_same_ranks(results.ranks[cell.ranks], target_ranks(rows, targets), cell.ranks)


def test_hit_50_comes_with_the_beams_for_it(bundle: Bundle, shop: Path, tmp_path: Path) -> None:
    words = "--engine", "torch", "--masks", "on", "--model", f"nezha={bundle.path}", "--model", f"same={bundle.path}"
    done = compare(shop, tmp_path, *words, "--beam-widths", "100", "--users", 400)  # some hits in every resample
    assert done.exit_code == 0, done.output or done.exception
    results = Results.load(tmp_path)
    for cell in results.record.cells:
        ranks = results.ranks[cell.ranks]
        assert 10 < ranks.max() <= cell.depth == 50
        assert cell.metrics["hit@50"] == pytest.approx((ranks > 0).mean())
    assert results.record.differences
    for difference in results.record.differences:  # a model against itself: of 400 users, some may have near ties
        assert difference.low is not None and difference.high is not None
        assert difference.relative == pytest.approx(0, abs=0.03) and difference.low <= 0 <= difference.high


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
    assert grown.record.differences == grown.compare(), "old rankings and new ones are compared together"
    again = Results.load(tmp_path / "b")
    assert again.ranks.keys() == grown.ranks.keys()
    for name, ranks in grown.ranks.items():
        assert_same_ranks(ranks, again.ranks[name], name)
    for wrong, message in (
        (("--engine", "onnx"), "was ranked with engine torch"),
        (("--seed", 3), "ranks other users"),
    ):
        done = compare(shop, tmp_path / "a", *both, *wrong)
        assert message in str(done.exception)


def test_what_cannot_be_compared_is_refused_in_one_line(
    bundle: Bundle, shop: Path, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    good, out = f"nezha={bundle.path}", tmp_path / "out"
    for words, expected, message in (
        (["--model", "nezha"], 2, "write NAME=BUNDLE"),
        (["--model", f"a/b={bundle.path}"], 2, "write NAME=BUNDLE"),
        (["--model", f"nezha={bundle.path},"], 2, "write NAME=BUNDLE"),
        (["--model", f"nezha={tmp_path / 'nowhere'}"], 1, r"nowhere/manifest.json: is missing"),
        (["--model", f"nezha={bundle.path},{bundle.path}"], 1, "same weights are given twice"),
        (["--model", good, "--beam-widths", "19"], 2, "20 or more"),
        (["--model", good, "--beam-widths", "20,many"], 2, "write whole numbers"),
        (["--model", good, "--masks", "maybe"], 2, "neither on nor off"),
        (["--model", good, "--engine", "other"], 2, "--engine 'other': use one of onnx, torch"),
        (["--model", good, "--engine", "tensorrt_llm"], 2, "--engine 'tensorrt_llm': use one of onnx, torch"),
        (["--model", good, "--device", "cuda"], 2, "needs the torch engine"),
        (["--model", good, "--device", "gpu"], 2, "--device 'gpu': use cpu, cuda"),
        (["--model", good, "--reference", "TIGER=1"], 2, "write NAME=HIT,NDCG"),
    ):
        status, said = run_genrec("compare", shop, "--out", out, *words)
        assert status == expected and re.search(message, said), (words, status, said)
        assert [line[:7] for line in said.splitlines() if not line.startswith("read ")] == ["error: "]
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


def test_models_are_read_from_texts() -> None:
    found = models_of(["nezha=a,b", "beam search=c", "nezha=d"])
    assert found == {"nezha": [Path("a"), Path("b"), Path("d")], "beam search": [Path("c")]}


def test_the_depth_of_a_ranking() -> None:
    assert [depth_of(beams) for beams in (16, 20, 50, 99, 100, 512)] == [10, 10, 25, 49, 50, 50]
    with pytest.raises(ValueError, match="name on, off or both"):
        ComparisonSettings(masks=())
