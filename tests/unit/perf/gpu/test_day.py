"""`make gpu-day` on a CPU: every step, what a second call does after one was cut off, and what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from genrec.engines.torch import TorchEngine
from genrec.reporting.self_check import StepFailed
from perf.gpu import bench, checks, day
from perf.gpu.report import PAGE, RESULTS

CPU = torch.device("cpu")
CELLS = ["tiny-P40-K16-B1", "tiny-P40-K16-B2"]
STEPS = ["parity", "recordings", "rates", *CELLS, "memory tiny", "onnx", "tensorrt_llm", "bf16"]


def run(out: Path, *words: object) -> Any:
    app = typer.Typer()
    app.command()(day.main)
    return CliRunner().invoke(app, [str(out), "--dry", "--bundle", "/nowhere", *map(str, words)])


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / RESULTS).read_text())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No products of matrices that are only timed."""
    monkeypatch.setattr(day, "measured_rates", lambda *_: {"bf16": 1e3, "float32": 1e3, "copy": 10.0})


@pytest.mark.usefixtures("quick")
def test_a_call_that_was_cut_off_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CutOff(BaseException):
        pass

    def cut_off(*_: object) -> str:
        raise CutOff

    with monkeypatch.context() as patched:
        patched.setattr(checks, "check_memory", cut_off)
        with pytest.raises(CutOff):
            run(tmp_path)
    assert list(results(tmp_path)["steps"]) == STEPS[:5]
    assert "| tiny-P40-K16-B2 |" in (tmp_path / PAGE).read_text()
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    assert "parity " not in done.output and "memory tiny" in done.output
    kept = results(tmp_path)
    assert list(kept["steps"]) == STEPS and all(said.startswith("pass") for said in kept["steps"].values())
    assert [cell["name"] for cell in kept["cells"]] == CELLS
    assert kept["measured"]["memory tiny"]["planned"]["total"] > 0 and kept["measured"]["onnx"]["ms"]
    again = run(tmp_path)
    assert again.exit_code == 0 and "onnx" not in again.output
    assert "bf16        pass  not here: /nowhere is no bundle" in again.output, "it may be there by now"


@pytest.mark.usefixtures("quick")
def test_when_time_is_over_no_step_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.0, 1.0, *[99.0] * 40])
    monkeypatch.setattr(day.time, "monotonic", lambda: next(clock))
    done = run(tmp_path, "--seconds", 5)
    assert done.exit_code == 3
    assert list(results(tmp_path)["steps"]) == STEPS[:1]
    assert f"not begun: {', '.join(STEPS[1:])}: call it again" in done.output.replace("\n", " ")
    assert "No cell has been measured." in (tmp_path / PAGE).read_text()


@pytest.mark.usefixtures("quick")
def test_a_step_that_fails_leaves_the_others_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> str:
        raise StepFailed("other drafts")

    def measured_and_wrong(*arguments: Any, **options: Any) -> str:
        bench.run_cell(*arguments, **options)
        return wrong()

    with monkeypatch.context() as patched:
        patched.setattr(checks, "check_parity", wrong)
        patched.setattr(day, "run_cell", measured_and_wrong)
        assert run(tmp_path).exit_code == 1
    assert results(tmp_path)["steps"]["parity"] == "FAIL  StepFailed: other drafts"
    assert results(tmp_path)["steps"]["onnx"].startswith("pass")
    assert run(tmp_path).exit_code == 0
    assert [cell["name"] for cell in results(tmp_path)["cells"]] == CELLS


@pytest.mark.usefixtures("quick")
def test_results_of_another_commit_are_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, "--seconds", 1)
    raw = results(tmp_path)
    raw["settings"]["commit"] = "another"
    (tmp_path / RESULTS).write_text(json.dumps(raw))
    refused = run(tmp_path)
    assert refused.exit_code == 2 and "another, now" in refused.output.replace("\n", " ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(day.main)
    done = CliRunner().invoke(app, [str(tmp_path / "out")])
    assert done.exit_code == 1 and "sees no GPU for cuda" in done.output
    assert not (tmp_path / "out").exists()


def test_every_published_cell_is_measured() -> None:
    from perf.gpu.report import PUBLISHED_MS, TARGET_CELL

    ours = {(cell.tokens, cell.batch) for cell in day.GPU.cells if cell.shape == TARGET_CELL["shape"]}
    assert ours >= PUBLISHED_MS.keys() and {cell.beam for cell in day.GPU.cells} == {TARGET_CELL["beam"]}
    assert {cell.shape for cell in day.GPU.cells} == {"0.6B", "1.7B"} <= bench.SHAPES.keys()


def test_an_engine_that_drafts_something_else_fails_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = TorchEngine.draft

    def off(self: TorchEngine, *arguments: Any, **options: Any) -> Any:
        drafts = drafted(self, *arguments, **options)
        if self.precision == "bf16":
            drafts.scores[:] -= 1.0
        return drafts

    monkeypatch.setattr(TorchEngine, "draft", off)
    with pytest.raises(StepFailed, match="draft_head, bf16"):
        checks.check_parity(CPU, bench.call_again)


def test_recordings_that_miss_a_change_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "set_masks", lambda self, table: None)
    with pytest.raises(StepFailed, match="masks changed in place"):
        checks.check_recordings(CPU, bench.call_again, {})


def test_a_provider_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    said = checks.check_onnx("NoSuchExecutionProvider", 1, {}, tmp_path)
    assert said.startswith("not here: onnxruntime ") and "onnxruntime-gpu has" in said
