"""The steps of the verification script, over the test double: they pass on what works and fail on what does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import genrec_builders.export.tensorrt_llm.verify as verify
from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.engines.base import Drafts
from genrec.engines.tensorrt_llm.contract import NO_DRAFTS
from genrec_builders.data import Dataset, sample_users, split_leave_one_out, write_dataset

Start = Callable[..., Any]


@pytest.fixture
def prompts(exported: Bundle) -> list[np.ndarray]:
    sids = exported.catalog.sids
    return [exported.layout.encode(sids[first : first + 1 + first % 25]) for first in range(30)]


def test_the_steps_pass_on_a_working_engine(
    start: Start, exported: Bundle, dataset: Dataset, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, reference = start(), open_engine(exported, "torch")
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, 60)
    said = verify.check_parity(engine, reference, exported, histories, targets)
    (share,) = re.findall(r"([\d.]+)% of the ten best", said)
    assert float(share) > 99, "two of 600 may tie so nearly that they change places with what comes after the tenth"
    assert "30 requests" in verify.check_batches(engine, prompts)
    assert "aborted" in verify.check_deadlines(engine, prompts[0])
    reusing = start(kv_cache_config={"enable_block_reuse": True})
    assert "30 prompts" in verify.check_reuse(reusing, prompts)
    monkeypatch.setattr(verify, "CONCURRENCY", (1, 8))
    rows = verify.benchmark(engine, prompts, 0.2)
    assert [row["concurrency"] for row in rows] == [1, 8]
    for row in rows:  # Little's law: as many are under way as arrive in the time that one takes
        assert row["per_second"] * row["p50"] / 1e3 == pytest.approx(row["concurrency"], rel=0.7)


def test_parity_fails_on_an_engine_that_drafts_something_else(
    start: Start, exported: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, reference = start(), open_engine(exported, "torch")
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, 20)
    drafted = engine.draft

    def off(prompts: Any, *, masked: bool = True) -> Drafts:
        drafts = drafted(prompts, masked=masked)
        return Drafts(np.roll(drafts.codes, 20, axis=1), drafts.scores)

    monkeypatch.setattr(engine, "draft", off)
    with pytest.raises(verify.StepFailed, match="of the ten best drafts are the same"):
        verify.check_parity(engine, reference, exported, histories, targets)


def test_reuse_that_hid_the_states_would_fail(
    start: Start, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rows without drafts were taken for drafts."""
    engine = start(kv_cache_config={"enable_block_reuse": True})
    monkeypatch.setattr("genrec.engines.tensorrt_llm.engine.NO_DRAFTS", NO_DRAFTS - 1)
    with pytest.raises(verify.StepFailed, match="once the prompts are cached"):
        verify.check_reuse(engine, prompts)


def test_the_report_counts_failures(capsys: pytest.CaptureFixture) -> None:
    checks = verify.SelfCheck()

    def fail() -> str:
        raise verify.StepFailed("what is wrong")

    assert checks.step("good", lambda: "all well") and checks.passed
    assert not checks.step("bad", fail) and not checks.passed
    assert not checks.step("broken", lambda: str(1 / 0))
    shown = capsys.readouterr().out
    assert "good        pass  all well" in shown
    assert "bad         FAIL  StepFailed: what is wrong" in shown and "FAIL  ZeroDivisionError" in shown


def test_without_a_gpu_it_says_so(stand_in: Any, bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(verify.main)
    write_dataset(dataset, tmp_path / "data")
    result = CliRunner().invoke(app, [str(bundle.path), str(tmp_path / "data"), str(tmp_path / "work")])
    assert result.exit_code == 1
    assert "package     FAIL" in result.output and "no GPU" in result.output
