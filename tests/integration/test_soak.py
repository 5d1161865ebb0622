"""The soak test's short form: half a minute of mixed load, a changing catalogue, and a process killed now and then."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from genrec.bundle import Bundle
from genrec.serving.front import FrontError, find_haproxy
from genrec_builders.data import Dataset, write_dataset
from perf.reliability import soak
from tests.needs import missing


def test_nothing_fails_under_mixed_load_while_processes_are_killed(
    bundle: Bundle, dataset: Dataset, knowledge_folder: Path, tmp_path: Path
) -> None:
    try:
        find_haproxy()
    except FrontError as error:
        missing(str(error))
    write_dataset(dataset, tmp_path / "shop")
    folders = bundle.path, tmp_path / "shop", knowledge_folder, tmp_path / "out"
    # So short a run says nothing of what grows; that is left out of the verdict here.
    words = *folders, "--minutes", 0.5, "--kill-s", 9, "--change-s", 2, "--warm-up", 0
    app = typer.Typer()
    app.command()(soak.main)
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    found = json.loads((tmp_path / "out" / soak.RESULTS).read_text())
    assert not found["failed"] and not found["wrong"] and not found["left_in_shared_memory"], done.output
    assert [one["what"] for one in found["killed"]] == ["triton", "backbone", "haproxy"]
    assert all(0 < one["back_s"] < soak.BACK_S for one in found["killed"])
    assert found["answered"]["recommendations"] > 50 and found["answered"]["changes of the catalogue"] > 3
    assert found["answered"]["texts"] > 0
    assert (tmp_path / "out" / soak.PLOT).exists()
