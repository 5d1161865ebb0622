"""What a command needs is checked before its first step, with numbers and what to do; nothing unusable is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from genrec.bundle import Bundle, BundleError
from genrec.cli.main import main
from genrec.errors import DataError
from genrec.prompt import Limits
from genrec.reporting.progress import Task, Track
from genrec.serving.triton import TritonNotFoundError
from genrec_builders import demo
from genrec_builders.build import build_bundle, export_bundle
from genrec_builders.config import BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, Interactions, ItemTable, write_dataset
from genrec_builders.training.loop import train
from tests.tensorrt_llm_double import exported_for_double


@contextmanager
def no_stage(title: str) -> Iterator[Task]:
    """A progress bar that no work may reach; what is checked first takes a split."""
    assert title == "split", f"reached {title}"
    yield lambda done, total, note: None


@contextmanager
def no_training(title: str) -> Iterator[Task]:
    assert title != "train"
    yield lambda done, total, note: None


def histories_of(*lengths: int, queries: bool = False) -> Dataset:
    """Users with so many interactions, and a catalogue of 30 items with semantic IDs."""
    sids = np.stack(np.unravel_index(np.arange(30), (4, 4, 4)), 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = (np.arange(offsets[-1]) % 30).astype(np.int32)
    texts = pa.array(["something"] * len(rows) if queries else [""] * len(rows), pa.large_string())
    names = [f"item-{row}" for row in range(30)]
    items = ItemTable(names, sids, (4, 4, 4), attributes={"title": names})
    return Dataset(items, Interactions([f"user-{user}" for user in range(len(lengths))], offsets, rows, texts))


@pytest.fixture(scope="module")
def config(tiny_build: tuple[BuildConfig, Track]) -> BuildConfig:
    limits = Limits(top_k=10, exclude=50, history=200)
    return replace(tiny_build[0], limits=limits, training=TrainingConfig(epochs=1, tokens_per_batch=1024))


@pytest.mark.parametrize(
    ("lengths", "epochs", "says"),
    [
        ([2, 2, 2], 1, r"nothing to test with: the longest of 3 histories has 2 .* 3 or more; give longer histories"),
        ([2, 2, 2], 0, "nothing to test with"),
        (
            [3, 3, 1],
            1,
            r"nothing to train on: 2 users are tested, and none of 3 .*the most are 1\); give longer histories",
        ),
    ],
)
def test_histories_that_are_too_short(
    lengths: list[int], epochs: int, says: str, config: BuildConfig, tmp_path: Path
) -> None:
    config = replace(config, training=replace(config.training, epochs=epochs))
    with pytest.raises(DataError, match=says):
        build_bundle(histories_of(*lengths), tmp_path / "out", config, no_stage)
    assert not list(tmp_path.iterdir())


@pytest.mark.training
def test_short_histories_are_enough_for_random_weights(
    config: BuildConfig, tmp_path: Path, tiny_build: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of which it is said that they are."""
    config = replace(config, training=replace(config.training, epochs=0), validation_users=7)
    build_bundle(histories_of(3, 3, 1), tmp_path / "out", config, tiny_build[1])
    bundle = Bundle(tmp_path / "out")
    bundle.check()
    assert bundle.manifest.training["curves"]["losses"] == [] and os.listdir(tmp_path) == ["out"]
    said = capfd.readouterr().err
    assert "0 targets to train on, 2 users to validate with (7 were asked for), 2 to test with" in said
    assert "not trained: with 0 epochs the weights stay as they are" in said
    assert main(["check", str(tmp_path / "out")]) == 0
    ok, warning = capfd.readouterr().out.splitlines()
    assert ok.startswith("ok: bundle ")
    assert warning.startswith("warning: trained on nothing (0 epochs): its weights are those of the checkpoint")


def test_queries_that_nobody_asked(config: BuildConfig, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"max_query is 8, but none of the 6 interactions to train on has a query; fill"
    ):
        build_bundle(histories_of(5, 5), tmp_path / "out", replace(config, max_query=8), no_stage)
    assert not list(tmp_path.iterdir())


@pytest.mark.training
def test_queries_that_nobody_is_tested_with(config: BuildConfig, tmp_path: Path, tiny_build: Any) -> None:
    data = histories_of(6, 6, queries=True)
    queries = data.interactions.queries.to_pylist()
    queries[5] = queries[11] = ""  # the test items'
    data = replace(data, interactions=replace(data.interactions, queries=pa.array(queries, pa.large_string())))
    manifest = build_bundle(data, tmp_path / "out", replace(config, max_query=8), tiny_build[1])
    assert manifest is not None
    quality = manifest.training["quality"]
    assert quality["queried_users"] == 0 and "queried_with_query" not in quality
    assert "null" not in (tmp_path / "out" / "manifest.json").read_text().split('"quality"')[1]


def test_limits_that_a_server_would_refuse(config: BuildConfig, tmp_path: Path) -> None:
    limits = config.limits.model_copy(update={"top_k": 5})
    with pytest.raises(ValueError, match="default_top_k 10 is above top_k 5"):
        build_bundle(histories_of(6, 6), tmp_path / "out", replace(config, limits=limits), no_stage)


def test_positions_of_a_checkpoint(bundle: Bundle, dataset: Dataset, config: BuildConfig, tmp_path: Path) -> None:
    config = replace(config, checkpoint=bundle.path, max_history=300)
    with pytest.raises(ValueError, match=r"max_position_embeddings 512 .* longest prompt's 90\d tokens; build with"):
        build_bundle(dataset, tmp_path / "out", config, no_training)


def test_room_on_the_disk(config: BuildConfig, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100_000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    says = r"out: the disk has 0\.1 MB left and {} takes about [\d.]+ MB; free some, or name a folder on another disk"
    with pytest.raises(OSError, match=says.format(r"a build of [\d,]+ parameters")):
        build_bundle(histories_of(6, 6), tmp_path / "out", config, no_training)
    with pytest.raises(OSError, match=says.format("the copy")):
        export_bundle(bundle.path, tmp_path / "out", 70)
    with pytest.raises(OSError, match=says.format("the copy")):
        exported_for_double(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_of_a_step_are_told_before_anything_is_copied(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "copytree", no_stage)
    with pytest.raises(ValueError, match="max_num_tokens is 10, but the longest prompt has"):
        exported_for_double(bundle, tmp_path / "out", max_num_tokens=10)


@pytest.mark.training
def test_a_bundle_that_check_refuses_is_not_written(
    config: BuildConfig, tmp_path: Path, tiny_build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec_builders.build.write_golden", lambda *_: None)
    with pytest.raises(BundleError, match=r"(?s)out: the new bundle is not put there.*golden\.npz"):
        build_bundle(histories_of(6, 6), tmp_path / "out", config, tiny_build[1])
    assert os.listdir(tmp_path) == ["out.work"]  # the training is not lost


class Words(torch.nn.Module):
    def __init__(self, loss: float = 1.0) -> None:
        super().__init__()
        self.model, self.loss = torch.nn.Linear(1, 1), loss

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch).sum() * 0.0 + self.loss


class Batches:
    def __init__(self, count: int) -> None:
        self.count = count

    def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
        return [np.arange(1)] * self.count

    def batch(self, examples: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
        return torch.ones(1, 1)


@pytest.mark.parametrize(("batches", "processes"), [(0, 1), (5, 8)])
def test_a_training_of_no_steps(batches: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five batches for eight processes: each dropped its share, and the weights stayed random."""
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    says = f"would take no step: an epoch has {batches} batches, of which each of {processes} processes takes one"
    with pytest.raises(ValueError, match=says):
        train(Words(), [Batches(batches)], TrainingConfig(epochs=2))  # type: ignore[list-item, arg-type]


def test_a_training_that_diverges_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec_builders.training.loop.add_dropout", lambda *_: lambda: None)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"loss is {loss} at step 1 of 6: .* use a learning rate below 0.002"):
            train(Words(loss), [Batches(3)], TrainingConfig(epochs=2), None, tmp_path / "state.pt")  # type: ignore[list-item, arg-type]
    assert not (tmp_path / "state.pt").exists()


def test_nobody_to_evaluate(
    bundle: Bundle, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It printed nan, exit status 0."""
    offsets = np.minimum(np.arange(len(dataset.interactions) + 1) * 2, 2 * len(dataset.interactions)).astype(np.int64)
    short = replace(
        dataset.interactions, offsets=offsets, rows=dataset.interactions.rows[: offsets[-1]].copy(), queries=None
    )
    write_dataset(replace(dataset, interactions=short), tmp_path / "short")
    assert main(["evaluate", str(bundle.path), str(tmp_path / "short")]) == 1
    said = capfd.readouterr().err
    assert f"error: {tmp_path / 'short'}: no user has the interactions that testing needs" in said


def test_the_demo_asks_for_its_server_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise TritonNotFoundError("no Triton server found")

    monkeypatch.setattr(demo, "find_triton", none, raising=False)
    monkeypatch.setattr(demo, "make_demo_shop", no_stage)
    with pytest.raises(TritonNotFoundError):
        demo.run_demo(None, tmp_path, Console())


def test_the_demo_shows_a_user_of_any_data() -> None:
    """It ended with an IndexError, after the training, where no history has 8 to 12 items."""
    assert demo._shown(np.array([30, 13, 9, 10])) == 2  # the first with 8 to 12
    assert demo._shown(np.array([2, 5, 5, 40])) == 1


def test_a_checkpoint_that_cannot_be_used_is_refused_before_any_stage(tmp_path: Path) -> None:
    config = BuildConfig(checkpoint=tmp_path / "typo")
    with pytest.raises(ValueError, match="typo: there is no such folder"):
        build_bundle(histories_of(*[6] * 12), tmp_path / "out", config, no_stage)
