"""Results of a comparison: what is kept, merged, compared and shown. test_comparison.py ranks."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.cli.main import app
from genrec.evaluation import bootstrap
from genrec.evaluation.metrics import mean_metrics, user_values
from genrec.evaluation.plots import difference_figure, quality_figure, time_figure, training_figure
from genrec.evaluation.report import write_report
from genrec.evaluation.results import (
    POOLED,
    RANKS,
    RECORD,
    DataSection,
    Floor,
    Machine,
    RankingCell,
    Record,
    Reference,
    Results,
    Run,
    Trained,
    merge,
    ranks_name,
    reference_of,
)

USERS = 300
relative_difference = partial(bootstrap.relative_difference, resamples=500)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals themselves are tested in test_bootstrap.py; 10,000 resamples take seconds."""
    monkeypatch.setattr("genrec.evaluation.results.relative_difference", relative_difference)


MACHINE = Machine(processor="A processor", cores=2, system="Linux x86_64", python="3.11.7", libraries={"torch": "2"})


def made_up(
    seeds: dict[str, Sequence[int]],
    widths: Sequence[int] = (20, 128),
    curves: bool = True,
    sampled: str = "users",
    catalog: str = "items",
) -> Results:
    """Results of models by name with a bundle per seed; what each ranks depends on its name, seed and setting only."""
    run = Run(
        created="2026-01-02T03:04:05+00:00",
        commit="abc",
        machine=MACHINE,
        engine="onnx",
        device="cpu",
        batch=16,
        threads=1,
    )
    data = DataSection(
        name="shop", items=400, test_users=400, users=USERS, sample_seed=0, catalog=catalog, sampled=sampled
    )
    popularity = [
        Floor(history_excluded=e, metrics={"hit@5": 0.01, "hit@10": 0.02, "ndcg@10": 0.01}) for e in (False, True)
    ]
    results = Results(Record(data=data, runs=[run], popularity=popularity), {})
    for name, numbers in seeds.items():
        for seed in numbers:
            trained = trained_as(name, seed, curves)
            results.record.models.append(trained)
            for width in widths:
                for masked in (True, False):
                    for excluded in (False, True):
                        _add(results, trained, width, masked, excluded)
    results.record = results.record.model_copy(update={"differences": results.compare()})
    return results


def trained_as(name: str, seed: int | None, curves: bool = True, beams: bool = True) -> Trained:
    """A bundle of that name and seed, or without beams a rival."""
    return Trained(
        model=name,
        weights=hashlib.sha256(f"{name} {seed}".encode()).hexdigest(),
        bundle_version=f"v-seed{seed}" if beams else None,
        created="2026-01-01T00:00:00+00:00",
        decoder="draft_head" if beams else name,
        seed=seed,
        parameters=1_000_000,
        beam_width=128 if beams else None,
        levels=(16, 16, 16) if beams else None,
        semantic_ids="sids" if beams else None,
        config={"seed": seed},
        curves={"losses": [5.0, 4.0, 3.5], "validation": [0.05, 0.08, 0.07], "best_epoch": 1} if curves else None,
    )


def _add(results: Results, trained: Trained, width: int, masked: bool, excluded: bool) -> None:
    rng = np.random.default_rng([sum(map(ord, trained.model)), trained.seed or 0, width, masked, excluded])
    depth = min(50, width // 2)
    found = rng.random(USERS) < 0.3 + 0.05 * masked
    ranks = np.where(found, rng.integers(1, depth + 1, USERS), 0).astype(np.uint16)
    name = ranks_name(trained, width, masked, excluded)
    cell = RankingCell(
        model=trained.model,
        weights=trained.weights,
        beam_width=width,
        masked=masked,
        history_excluded=excluded,
        depth=depth,
        metrics=mean_metrics(ranks, (5, 10, 50) if depth == 50 else (5, 10)),
        valid_drafts=1.0 if masked else 0.4,
        ms_per_user=width / 20,
        drafting_ms=width / 25,
        run=0,
        ranks=name,
    )
    results.record.cells.append(cell)
    results.ranks[name] = ranks


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    results = made_up({"nezha": [0], "beam search": [0, 1]})
    results.save(tmp_path / "a")
    read = Results.load(tmp_path / "a")
    assert read.record == results.record
    assert set(read.ranks) == set(results.ranks)
    for name, ranks in read.ranks.items():
        assert ranks.dtype == np.uint16
        np.testing.assert_array_equal(ranks, results.ranks[name])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [RANKS, RECORD]


def test_the_record_holds_everything_that_a_reader_needs(tmp_path: Path) -> None:
    made_up({"nezha": [0, 1], "tiger": [0, 1]}).save(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    assert list(record) == [
        "format_version", "data", "runs", "models", "cells", "popularity", "references", "differences",
    ]  # fmt: skip
    assert {"created", "commit", "machine", "engine", "device", "batch", "threads"} == set(record["runs"][0])
    assert {"processor", "cores", "python", "libraries"} < set(record["runs"][0]["machine"])
    assert {"bundle_version", "weights", "parameters", "seed", "config", "curves"} < set(record["models"][0])
    wide = next(cell for cell in record["cells"] if cell["beam_width"] == 128)
    narrow = next(cell for cell in record["cells"] if cell["beam_width"] == 20)
    assert set(wide["metrics"]) == {f"{name}@{k}" for name in ("hit", "ndcg") for k in (5, 10, 50)}
    assert set(narrow["metrics"]) == {f"{name}@{k}" for name in ("hit", "ndcg") for k in (5, 10)}
    assert len(record["differences"]) == 2 * 2 * 2 * 2 * 3  # widths, masks, histories, metrics, pooled and two pairs
    assert {"ours", "theirs", "relative", "low", "high", "pair", "seeds"} < set(record["differences"][0])


def test_pooling_averages_each_user_over_the_seeds() -> None:
    results = made_up({"nezha": [0, 1, 2], "tiger": [0, 1, 2]}, widths=[20])
    setting = (20, True, False)
    found = {d.pair: d for d in results.compare() if d.metric == "ndcg@10" and d.masked and not d.history_excluded}
    assert list(found) == [POOLED, "seed 0 / seed 0", "seed 1 / seed 1", "seed 2 / seed 2"]

    def mean(name: str) -> np.ndarray:
        return sum(user_values(results.ranks[cell.ranks], "ndcg@10") for cell in results.cells(name, setting)) / 3

    expected = relative_difference(mean("nezha"), mean("tiger"))
    pooled = found[POOLED]
    assert expected is not None and pooled.relative is not None and pooled.low is not None and pooled.high is not None
    assert pooled.relative == pytest.approx(expected.relative)
    assert (pooled.low, pooled.high) == pytest.approx((expected.low, expected.high))
    singles = [d.high - d.low for d in found.values() if d.pair != POOLED and d.low is not None and d.high is not None]
    assert pooled.high - pooled.low < min(singles)


def test_merging_folders_equals_one_run_over_all(tmp_path: Path) -> None:
    whole = made_up({"nezha": [0, 1, 2], "tiger": [0, 1]})
    made_up({"nezha": [2], "tiger": [1]}).save(tmp_path / "a")  # later seeds first, and one ranking in both
    made_up({"nezha": [0, 1], "tiger": [0, 1]}).save(tmp_path / "b")
    merged = merge([tmp_path / "a", tmp_path / "b"])
    assert merged.names == whole.names
    assert [t for name in whole.names for t in merged.trained(name)] == whole.record.models
    assert merged.record.differences == whole.record.differences
    assert {name: ranks.tolist() for name, ranks in merged.ranks.items()} == {
        name: ranks.tolist() for name, ranks in whole.ranks.items()
    }
    assert {c.ranks: c.model_copy(update={"run": 0}) for c in merged.record.cells} == {
        c.ranks: c for c in whole.record.cells
    }
    assert len(merged.record.runs) == 2 and {cell.run for cell in merged.record.cells} == {0, 1}


def test_merged_one_by_one_or_at_once_is_the_same(tmp_path: Path) -> None:
    for name, seeds in (("a", {"nezha": [0]}), ("b", {"tiger": [0]}), ("c", {"nezha": [1]})):
        made_up(seeds, widths=[20]).save(tmp_path / name)
    merge([tmp_path / "a", tmp_path / "b"]).save(tmp_path / "ab")
    assert merge([tmp_path / "ab", tmp_path / "c"]).record == merge([tmp_path / n for n in "abc"]).record


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sampled": "others"}, r"ranks other users \(300 of 400\)"), ({"catalog": "others"}, "another catalogue")],
)
def test_folders_of_other_users_or_items_do_not_merge(tmp_path: Path, change: dict, message: str) -> None:
    made_up({"nezha": [0]}).save(tmp_path / "a")
    made_up({"tiger": [0]}, **change).save(tmp_path / "b")
    with pytest.raises(ValueError, match=message) as error:
        merge([tmp_path / "a", tmp_path / "b"])
    assert "\n" not in str(error.value)


def test_two_rankings_of_the_same_do_not_merge_if_they_differ(tmp_path: Path) -> None:
    results = made_up({"nezha": [0]})
    results.save(tmp_path / "a")
    name = next(iter(results.ranks))
    results.ranks[name] = results.ranks[name][::-1].copy()
    results.save(tmp_path / "b")
    with pytest.raises(ValueError, match=re.escape(name)):
        merge([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (RECORD, None, "is missing; `genrec compare` writes it"),
        (RECORD, "{", "not readable as JSON"),
        (RECORD, "[1]", "not a comparison of format version 1"),
        (RECORD, '{"format_version": 9}', "not a comparison of format version 1"),
        (RECORD, '{"format_version": 1, "data": {}}', "Field required"),
        (RANKS, None, "No such file"),
        (RANKS, "nothing", "ranks.npz: "),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    made_up({"nezha": [0]}).save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Results.load(tmp_path)
    assert str(tmp_path / file) in str(error.value) and "\n" not in str(error.value)


def test_ranks_of_another_length_are_refused(tmp_path: Path) -> None:
    results = made_up({"nezha": [0]})
    results.ranks = {name: ranks[:5] for name, ranks in results.ranks.items()}
    results.save(tmp_path)
    with pytest.raises(ValueError, match=r"is uint16 \[5\]; 300 users need"):
        Results.load(tmp_path)


def test_the_page_names_every_model_and_shows_every_figure(tmp_path: Path) -> None:
    results = made_up({"nezha": [0, 1], "beam-search": [0, 1], "other": [0]})
    results.record.references.append(reference_of("TIGER=0.106,0.080"))
    page = write_report(results, tmp_path).read_text()
    for text in ("nezha", "beam-search", "other", "most popular items", "TIGER (published)", "0.1060", "batches of 16"):
        assert text in page
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert figures == [
        "differences-history-allowed.svg", "quality-history-allowed.svg", "differences-history-excluded.svg",
        "quality-history-excluded.svg", "time.svg", "training.svg",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {*figures, "report.md"}
    assert all((tmp_path / name).read_text().rstrip().endswith("</svg>") for name in figures)
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M)]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    cell = results.cells("other", (128, True, True))[0]
    assert f"| {cell.metrics['hit@50']:.4f} | 100.0 % |" in page


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_report(made_up({"nezha": [0], "tiger": [0]}, widths=[20]), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_figures_that_have_nothing_to_show_are_left_out(tmp_path: Path) -> None:
    alone = made_up({"nezha": [0]}, curves=False)
    assert difference_figure(alone, False) is None and training_figure(alone) is None
    assert quality_figure(alone, False) is not None
    page = write_report(alone, tmp_path).read_text()
    assert "differences" not in page.lower().split("## what was measured")[0] and "training.svg" not in page


def test_a_legend_is_no_wider_than_its_figure() -> None:
    results = made_up({f"a model of a rather long name, {number}": [0] for number in range(4)})
    published = Reference(name="somebody else's, published", metrics={"hit@10": 0.1, "ndcg@10": 0.1})
    results.record = results.record.model_copy(update={"references": [published]})
    figures = [quality_figure(results, False), time_figure(results), training_figure(results)]
    for figure in [*figures, difference_figure(results, True)]:
        assert figure is not None
        figure.draw_without_rendering()
        assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_the_report_command_merges(tmp_path: Path) -> None:
    made_up({"nezha": [0], "tiger": [0]}, widths=[20]).save(tmp_path / "a")
    made_up({"nezha": [1], "tiger": [1]}, widths=[20]).save(tmp_path / "b")
    words = ["compare-report", tmp_path / "out", tmp_path / "a", tmp_path / "b", "--reference", "TIGER=0.106,0.08"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert len(Results.load(tmp_path / "out").record.models) == 4
    page = (tmp_path / "out" / "report.md").read_text()
    assert "pooled, 2 seeds / 2" in page and "TIGER" in page


@pytest.mark.parametrize("text", ["TIGER", "TIGER=", "TIGER=0.1", "TIGER=a,b", "=0.1,0.1", "TIGER=10.6,8.0", "T=1,1,1"])
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=HIT,NDCG"):
        reference_of(text)
