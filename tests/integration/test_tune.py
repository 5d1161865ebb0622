"""`genrec tune`, and what `serve` and `plan` do with what it finds. Real servers are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import Bundle
from genrec.cli.main import main
from genrec.serving.repository import Deployment
from genrec.serving.serve import prepare_server
from genrec.tuning.choices import Choice, Measured
from genrec.tuning.kept import Tuned
from genrec.tuning.measurement import precisions


class Started(Exception):
    """A server would start."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def served(monkeypatch: pytest.MonkeyPatch, *words: object) -> Deployment:
    """The deployment that `genrec serve` with these words would start."""

    def prepare(bundle: Path, deployment: Deployment, *more: Any, **options: Any) -> Any:
        if "host" in options:  # the command's own; those that are measured start
            raise Started(deployment)
        return prepare_server(bundle, deployment, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr("genrec.serving.serve.prepare_server", prepare)
        with pytest.raises(Started) as started:
            main(["serve", *map(str, words)])
    found = started.value.args[0]
    assert isinstance(found, Deployment)
    return found


def test_an_engine_is_measured_once_and_then_known(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genrec.cli.tune.SECONDS", 0.3)
    monkeypatch.setattr("genrec.cli.plan.usable_cores", lambda: 1)
    words = bundle.path, "--engine", "auto", "--cores", 1
    first = served(monkeypatch, *words)
    assert (first.threads, first.instances) == (1, 1) and first.engine in ("onnx", "openvino")
    tuned = Tuned.load(bundle.path, 1)
    assert tuned is not None and len(tuned.measured) == len(precisions(bundle.path))
    for one in tuned.measured:
        assert one.refused or (0 < one.p50_ms <= one.p95_ms <= one.p99_ms and one.requests_per_s > 0)

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("it was measured again")

    monkeypatch.setattr("genrec.tuning.measurement.measure", measured_again)
    assert served(monkeypatch, *words) == first
    if first.precision != "f32":  # of which OpenVINO's would be measured, too
        assert served(monkeypatch, *words, "--precision", first.precision) == first
    capsys.readouterr()
    assert main(["plan", str(bundle.path), "--device", "l4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuned"] == json.loads(tuned.model_dump_json())
    assert main(["plan", str(bundle.path), "--device", "l4"]) == 0
    assert "measured on this machine by `genrec tune`, 1 processors" in capsys.readouterr().out


def test_users_of_ones_own_ask(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [item_id.decode() for item_id in bundle.catalog.item_ids[:5]]
    (tmp_path / "users.json").write_text(json.dumps([ids, ids[:2], []]))
    words = ["tune", str(bundle.path), "--cores", "1", "--precision", "f32", "--seconds", "0.2", "--rounds", "1"]
    assert main([*words, "--histories", str(tmp_path / "users.json")]) == 0
    said = capsys.readouterr().out
    assert f"this one serves best here: genrec serve {bundle.path} --engine o" in said
    tuned = Tuned.load(bundle.path, 1)
    assert tuned is not None and {one.choice.precision for one in tuned.measured} == {"f32"}


def test_what_cannot_be_kept_is_served_all_the_same(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("no folder")
    best = Measured(
        choice=Choice(engine="onnx", precision="f32", threads=1, instances=1), p50_ms=1.0, requests_per_s=9.0
    )
    monkeypatch.setattr("genrec.tuning.measurement.measure", lambda *_: [best])
    found = served(monkeypatch, bundle.path, "--engine", "auto", "--cores", 1)
    assert (found.engine, found.threads) == ("onnx", 1)
    assert "warning: this cannot be kept, and the next start measures again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "is no JSON"),
        ("{}", "holds no list of histories"),
        ('[["a"], [4711]]', "history 1 is [4711]; write a JSON list of histories, each a list of up to"),
        (json.dumps([["a"] * 100_000]), "history 0 is"),
    ],
)
def test_histories_that_cannot_be_asked_are_refused(
    bundle: Bundle, tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.json").write_text(text)
    assert main(["tune", str(bundle.path), "--histories", str(tmp_path / "users.json")]) == 1
    said = capsys.readouterr().err
    assert says in said and str(tmp_path / "users.json") in said


def test_options_of_auto_go_with_it(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bundle.path), "--aim", "throughput"]) == 2
    assert "--cores and --aim go with --engine auto, not with --engine onnx" in capsys.readouterr().err
