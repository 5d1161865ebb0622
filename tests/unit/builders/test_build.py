"""Bundles of the other kinds that a build can make, each whole: trained, exported, checked, ranked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from genrec.bundle import CHECKPOINT, QUANTIZER, Bundle
from genrec.bundle.checkpoint_shapes import HeadShape
from genrec.catalog import ResidualQuantizer
from genrec.cli.main import app
from genrec.engines import open_engine
from genrec.model.checkpoint import load_checkpoint
from genrec.reporting.progress import Track
from genrec_builders.build import build_bundle, export_bundle
from genrec_builders.config import BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, split_leave_one_out

FROZEN = TrainingConfig(epochs=1, freeze_backbone=True)


def test_a_baseline_bundle_is_served_by_the_same_engines(baseline: Bundle, bundle: Bundle, dataset: Dataset) -> None:
    baseline.check()
    assert baseline.layout == replace(bundle.layout, placeholders=())
    histories = split_leave_one_out(dataset.interactions).test.histories
    prompts = [baseline.layout.encode(baseline.catalog.sids[histories[user][-20:]]) for user in range(8)]
    onnx, torch_ = (open_engine(baseline, kind).draft(prompts) for kind in ("onnx", "torch"))
    np.testing.assert_allclose(onnx.scores, torch_.scores, atol=1e-4)
    quality = baseline.manifest.training["quality"]
    assert quality["history_allowed"]["hit@10"] > 1.5 * quality["popularity"]["hit@10"]
    assert quality["history_allowed"]["valid_drafts"] == 1.0


def test_a_draft_head_is_trained_on_the_frozen_backbone_of_another_bundle(
    baseline: Bundle, dataset: Dataset, tiny_build: Any, tmp_path: Path
) -> None:
    config, track = tiny_build
    training = replace(config.training, epochs=4, freeze_backbone=True, auxiliary_weight=0.0, learning_rate=5e-3)
    config = replace(config, checkpoint=baseline.path, training=training, validation_users=100)
    manifest = build_bundle(dataset, tmp_path / "head", config, track)
    built = Bundle(tmp_path / "head")
    built.check()
    ours, theirs = load_checkpoint(built.path / CHECKPOINT).model, load_checkpoint(baseline.path / CHECKPOINT).model
    for name, frozen in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name][: len(frozen)], frozen, rtol=0, atol=0)
    assert manifest is not None
    quality, curves = manifest.training["quality"], manifest.training["curves"]
    assert quality["history_allowed"]["hit@10"] > 1.5 * quality["popularity"]["hit@10"]
    assert len(curves["validation"]) == 4 and curves["validation"][curves["best_epoch"]] == max(curves["validation"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoder": "greedy"}, "decoder 'greedy' is unknown; use one of"),
        ({"training": FROZEN}, "a frozen backbone must be a trained one: give a checkpoint"),
        ({"training": FROZEN, "checkpoint": "bundle", "decoder": "beam_search"}, "and beam_search has none"),
        ({"levels": (8, 8), "checkpoint": "bundle"}, r"has levels \(16, 16, 16\), the semantic IDs have \(8, 8\)"),
        ({"max_query": 8, "checkpoint": "bundle"}, "was not trained with text queries"),
    ],
)
def test_what_cannot_be_built(
    changes: dict, says: str, bundle: Bundle, dataset: Dataset, tiny_build: Any, tmp_path: Path
) -> None:
    config, track = tiny_build
    changes = {name: bundle.path if value == "bundle" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=says):
        build_bundle(dataset, tmp_path / "out", replace(config, **changes), track)
    assert not (tmp_path / "out").exists()


def test_queries_that_are_not_there(dataset: Dataset, tiny_build: Any, tmp_path: Path) -> None:
    config, track = tiny_build
    mute = replace(dataset, interactions=replace(dataset.interactions, queries=None))
    with pytest.raises(ValueError, match="have no column `query`"):
        build_bundle(mute, tmp_path / "out", replace(config, max_query=8), track)


def test_a_beam_too_narrow_to_be_served_is_refused(
    bundle: Bundle, dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path: Path
) -> None:
    config, track = tiny_build
    with pytest.raises(ValueError, match="beam width 20 is too narrow: use at least 60, twice the 30 items"):
        export_bundle(bundle.path, tmp_path / "narrow", 20)
    with pytest.raises(ValueError, match="use at least 60"):
        build_bundle(dataset, tmp_path / "narrow", replace(config, beam_width=20), track)
    assert not list(tmp_path.iterdir())


def test_a_bundle_knows_how_well_its_semantic_ids_fit(bundle: Bundle, dataset: Dataset) -> None:
    quantizer, embeddings = ResidualQuantizer.load(bundle.path / QUANTIZER), dataset.items.embeddings
    assert embeddings is not None and quantizer.fit is not None
    assert quantizer.fit.variance == pytest.approx(np.var(embeddings, axis=0).sum(), rel=1e-4)
    fitted = quantizer.squared_errors(embeddings, quantizer.encode(embeddings)).mean()
    assert fitted < quantizer.fit.error < quantizer.fit.variance  # that of items that were fitted on is smaller


def test_everyone_may_read_a_bundle(bundle: Bundle) -> None:
    assert [path for path in bundle.path.rglob("*") if path.is_file() and path.stat().st_mode & 0o044 != 0o044] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (0.2, 0.1)),
        (["--decoder", "beam_search"], (0.1, 0.0)),
        (["--dropout", "0", "--head-dropout", "0.3"], (0.0, 0.3)),
    ],
)
def test_dropout_is_the_decoders_own_unless_given(
    words: list[str], expected: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BuildConfig] = []
    monkeypatch.setattr("genrec_builders.data.read_dataset", lambda data, tell, kinds, track: None)
    monkeypatch.setattr(
        "genrec_builders.build.build_bundle", lambda data, out, config, track, curves: asked.append(config)
    )
    result = CliRunner().invoke(app, ["build", str(tmp_path / "data"), str(tmp_path / "bundle"), *words])
    assert result.exit_code == 0, result.output
    training = replace(TrainingConfig(), dropout=expected[0], head_dropout=expected[1])
    decoder = words[1] if "--decoder" in words else "draft_head"
    assert asked == [BuildConfig(decoder=decoder, training=training)]  # and the options' other defaults are its own


def test_options_of_a_build_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BuildConfig] = []
    kinds: list[dict[str, str]] = []
    without_sids = SimpleNamespace(items=SimpleNamespace(sids=None, embeddings=None))
    monkeypatch.setattr(
        "genrec_builders.data.read_dataset", lambda data, tell, types, track: kinds.append(types) or without_sids
    )
    monkeypatch.setattr(
        "genrec_builders.build.build_bundle", lambda data, out, config, track, curves: asked.append(config)
    )
    words = "--levels 8,9 --head-scales 100,10,2 --max-top-k 7 --sid-tokens <a_{}>,<b_{}> --state-size 32"
    words += " --attribute-type price=number --attribute-type a=b=strings"
    words = [*words.split(), "--checkpoint", str(tmp_path / "checkpoint")]
    result = CliRunner().invoke(app, ["build", str(tmp_path / "data"), str(tmp_path / "bundle"), *words])
    assert result.exit_code == 0, result.output
    shape = ["build", str(tmp_path / "data"), str(tmp_path / "other"), "--heads", "2"]
    assert CliRunner().invoke(app, shape).exit_code == 0
    (config, other), scales = asked, {"code_embedding_scale": 100.0, "transition_scale": 10.0, "projection_scale": 2.0}
    assert kinds == [{"price": "number", "a=b": "strings"}, {}]
    assert config.levels == (8, 9) and config.sid_tokens == ("<a_{}>", "<b_{}>") and config.head == HeadShape(32)
    assert (config.limits.top_k, config.limits.default_top_k) == (7, 7)
    assert (other.shape.heads, other.shape.kv_heads) == (2, 2)
    assert scales.items() <= vars(config.training).items()

    # A head alone has settings of its own.
    for more, expected in ([], (0.0, 0.0, 4e-3)), (["--learning-rate", "0.01"], (0.0, 0.0, 1e-2)):
        frozen = ["build", str(tmp_path / "data"), str(tmp_path / "bundle"), *words, "--freeze-backbone", *more]
        assert CliRunner().invoke(app, frozen).exit_code == 0
        training = asked[-1].training
        assert (training.dropout, training.head_dropout, training.learning_rate) == expected
