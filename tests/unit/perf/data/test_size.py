"""The made-up log of any size: the same in both forms, and every stage of it is measured."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec_builders.data import read_dataset, split_interactions
from perf.data.size import app


def run(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


def test_the_forms_of_a_log_are_one_log_and_every_stage_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.data.size._CHUNK", 700)
    for form in ("parquet", "csv"):
        run("generate", tmp_path / form, "--interactions", 2000, "--items", 100, "--form", form)
    one, other = (read_dataset(tmp_path / form) for form in ("parquet", "csv"))
    assert one.items.item_ids == other.items.item_ids and len(one.interactions.rows) == 2000
    assert one.interactions.user_ids == other.interactions.user_ids
    for name in ("rows", "offsets", "times"):
        np.testing.assert_array_equal(getattr(one.interactions, name), getattr(other.interactions, name))
    run("measure", tmp_path / "csv", "--epochs", 2, "--split-at", "2023-01-01", "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    stages = ["imports", "read", "fingerprint", "split", "popularity", "windows", "plan 2 epochs", "100 batches"]
    assert list(found["stages"]) == stages
    assert all(figures["peak_rss_gib"] > 0 for figures in found["stages"].values())


def test_no_interaction_is_an_object_of_python(tmp_path: Path) -> None:
    """For each, numpy takes 4 bytes for user, item and place, 8 for time and order, and some of it twice."""
    count = 200_000
    run("generate", tmp_path / "log", "--interactions", count, "--items", 100, "--users", 500)
    tracemalloc.start()
    try:
        interactions = read_dataset(tmp_path / "log").interactions
        assert tracemalloc.get_traced_memory()[1] < 64 * count
        tracemalloc.reset_peak()
        split_interactions(interactions)
        assert tracemalloc.get_traced_memory()[1] < 64 * count
    finally:
        tracemalloc.stop()
