"""The rivals of NEZHA: what they score, what they may learn from, and that their results join with those of bundles."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.cli.main import app
from genrec.evaluation import bootstrap
from genrec.evaluation.results import Results
from genrec.item_vectors import ItemVectors
from genrec.votes import ItemVotes, VotesConfig
from genrec_builders.data import Dataset, write_dataset
from genrec_builders.training.examples import make_windows
from genrec_builders.votes import nearest_items
from perf.quality.rivals import Rivals
from perf.quality.without_model import Affinity, ItemKnn, tuned_votes_alone
from tests.histories import sequences_of, swapped

ITEMS = 30


def histories(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS, rng.integers(1, 9)).tolist() for _ in range(count)]


def test_item_knn_scores_votes_and_then_popularity() -> None:
    users, counts = histories(0, 60), np.arange(ITEMS)
    votes = ItemVotes(VotesConfig(decay=0.7), *next(nearest_items(sequences_of(users), ITEMS, [5.0], 4)))
    asked = [np.array(history, np.int32) for history in histories(1, 20)]
    for history, found in zip(asked, ItemKnn(votes, counts, 5)(asked), strict=True):
        recent = history[-5:]
        rows, cast = votes.cast(np.zeros(recent.size, np.int64), recent, 1)
        expected = counts / ITEMS
        expected[rows] = 1 + cast
        np.testing.assert_allclose(found, expected)


def test_votes_alone_are_what_is_added_to_drafts() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, ITEMS, 3)).astype(np.float32)
    vectors = ItemVectors(before, after, np.zeros(ITEMS, np.float32), np.array([1.0, 0.5], np.float32))
    near = next(nearest_items(sequences_of(histories(0, 60)), ITEMS, [5.0], 4))
    votes = ItemVotes(VotesConfig(decay=0.7), *near)
    chosen, settings = tuned_votes_alone(votes, Affinity(vectors, 5), lambda model: -abs(model.votes.config.weight - 2))
    assert settings == {"weight": 2.0, "doubt": 0.001} == chosen.votes.config.model_dump(include={"weight", "doubt"})
    asked = [np.array(history, np.int32) for history in histories(1, 20)]
    for history, found in zip(asked, chosen(asked), strict=True):
        recent = history[-5:]
        rows, cast = votes.cast(np.zeros(recent.size, np.int64), recent, 1)
        weights = np.array([0.5] * (recent.size - 1) + [1.0])
        expected = after @ (weights @ before[recent]) / np.sqrt(weights.sum())
        expected[rows] += 2 * np.log1p(cast / 0.001)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def run(data: Path, out: Path, *words: object) -> str:
    from typer import Typer

    from perf.quality.rivals import main

    command = Typer()
    command.command()(main)
    done = CliRunner().invoke(command, [str(data), str(out), *map(str, words)])
    assert done.exit_code == 0, done.output or done.exception
    return done.output


@pytest.fixture(scope="module")
def shop(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rivals") / "shop"
    write_dataset(dataset, path)
    return path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "genrec.evaluation.results.relative_difference", partial(bootstrap.relative_difference, resamples=100)
    )


def test_rivals_stand_beside_bundles_in_one_report(bundle: Bundle, shop: Path, tmp_path: Path) -> None:
    compared = ["compare", shop, "--out", tmp_path / "a", "--model", f"nezha={bundle.path}", "--beam-widths", 20]
    done = CliRunner().invoke(app, [*map(str, compared), "--masks", "on", "--engine", "torch", "--batch-size", "64"])
    assert done.exit_code == 0, done.output
    names = ["popularity", "item-knn", "item-vectors", "votes-alone"]
    run(shop, tmp_path / "b", "--rivals", ",".join(names))
    done = CliRunner().invoke(app, ["compare-report", *(str(tmp_path / name) for name in ("joined", "a", "b"))])
    assert done.exit_code == 0, done.output or done.exception
    joined = Results.load(tmp_path / "joined")
    assert joined.names == ["nezha", *names]
    assert {d.baseline for d in joined.record.differences} == set(names)
    for floor in joined.record.popularity:  # ties in another order
        (cell,) = joined.cells("popularity", (None, None, floor.history_excluded))
        assert cell.metrics["hit@10"] == pytest.approx(floor.metrics["hit@10"], abs=0.02)
    for name in names[1:]:
        assert joined.cells(name)[0].metrics["hit@10"] > 2 * joined.record.popularity[0].metrics["hit@10"]


def test_seeds_are_pooled_and_settings_are_not(shop: Path, tmp_path: Path) -> None:
    rivals = Rivals(shop, tmp_path / "out", validation_users=5)

    def add(**asked: object) -> None:
        scores = np.random.default_rng(int(str(asked["seed"]))).random(rivals.items)
        rivals.add("made up", lambda task: (lambda some: np.tile(scores, (len(some), 1)), [scores], asked, None), asked)

    for seed in (0, 1, 1):
        add(seed=seed, dropout=0.1)
    assert [each.seed for each in Results.load(tmp_path / "out").trained("made up")] == [0, 1]
    with pytest.raises(ValueError, match=r"dropout 0\.1, now 0\.2"):
        add(seed=2, dropout=0.2)


def test_no_rival_learns_from_what_is_held_out(dataset: Dataset, tmp_path: Path) -> None:
    learnt = []
    for name, changed in (
        ("as it is", dataset),
        ("test", swapped(dataset, 1)),
        ("both", swapped(swapped(dataset, 1), 2)),
    ):
        write_dataset(changed, tmp_path / name)
        rivals = Rivals(tmp_path / name, tmp_path / f"{name} out", validation_users=50)
        counts = rivals.popularity(lambda *_: None)[1]
        learnt.append([*counts, *next(nearest_items(rivals.split.train, rivals.items, [10.0]))])
    for other in learnt[1:]:
        for ours, theirs in zip(learnt[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_wrong_words_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for words, message in (
        (["--rivals", "tiger"], "'tiger' is unknown"),
        (["--hidden", 30, "--heads", 4], "must be a multiple of"),
    ):
        with pytest.raises(AssertionError, match=message):
            run(tmp_path / "nowhere", tmp_path / "out", *words)


class TestSasrec:
    """With RecTools: the extra `rivals` is not part of the tests' environment, and its rival is left out there."""

    @pytest.fixture(autouse=True)
    def rectools(self) -> None:
        pytest.importorskip("rectools", reason="RecTools is not installed: `make rivals` has it in .venv-rivals")

    @pytest.mark.training
    def test_it_learns_and_keeps_the_best_epoch(self) -> None:
        from perf.quality.sasrec import Sasrec, SasrecConfig, train_sasrec

        rng = np.random.default_rng(0)
        users = [((rng.integers(20) + np.arange(size)) % 20).tolist() for size in rng.integers(2, 12, 80)]
        train = sequences_of(users)
        windows = make_windows(train.offsets, train.rows, 6)
        scores = iter([0.1, 0.3, 0.2, 0.2, 0.9])
        snapshots: list[np.ndarray] = []
        asked = [np.array([3, 4, 5], np.int32), np.array([29, 19], np.int32), np.array([19], np.int32)]

        def validate(model: Sasrec) -> float:
            snapshots.append(model(asked))
            return next(scores)

        config = SasrecConfig(16, 1, 2, 0.0, 1e-2, 8, epochs=5, patience=2)
        model, curves = train_sasrec(windows, ITEMS, 6, config, validate)
        assert curves.validation == [0.1, 0.3, 0.2, 0.2] and curves.best_epoch == 1
        assert curves.losses[-1] < 0.6 * curves.losses[0]
        found = model(asked)
        np.testing.assert_array_equal(found, snapshots[1])
        assert (found[:, 20:] == -np.inf).all() and np.isfinite(found[:, :20]).all()
        np.testing.assert_allclose(found[1], found[2], rtol=1e-5)  # item 29 was not trained on
        assert found[0].argmax() == 6

    def test_its_loss_is_that_of_rectools_on_whole_rows(self) -> None:
        import torch
        from rectools.models.nn.transformers.lightning import TransformerLightningModule

        from perf.quality import sasrec

        losses = []

        class Both(sasrec.TargetsOnly):
            def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
                self.log = lambda *_, **__: None  # type: ignore[method-assign]
                loss = super().training_step(batch, batch_idx)
                losses.append((loss.item(), TransformerLightningModule.training_step(self, batch, batch_idx).item()))
                return loss

        train = sequences_of(histories(2, 40))
        windows = make_windows(train.offsets, train.rows, 6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sasrec, "TargetsOnly", Both)
            with pytest.raises(KeyError):  # the loss is not logged
                config = sasrec.SasrecConfig(16, 1, 2, 0.0, batch_size=4, epochs=1)
                sasrec.train_sasrec(windows, ITEMS, 6, config, lambda model: 0.0)
        assert len(losses) > 5
        for ours, theirs in losses:
            assert ours == pytest.approx(theirs, rel=1e-4)
