"""A bundle of data that is split at a moment: built, evaluated and compared by that split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.cli.main import main
from genrec.evaluation.results import Results

SMALL = ["--hidden-size=16", "--layers=1", "--heads=1", "--state-size=8", "--transition-size=8", "--attention-heads=0"]
SMALL += ["--beam-width=40", "--max-top-k=10", "--epochs=0"]
AT = "2024-05-01"
# The days of May in which each user took an item; before it, day 0 and less.
DAYS = {"a": [-3, -2, -1, 2, 4], "b": [-5, 3, 5, 6], "c": [-1, 0], "d": [7, 8, 9], "e": [-9, 1]}


def folder_of(path: Path, late: int = 0) -> Path:
    """late: added to the items from May on."""
    path.mkdir()
    lines = [
        f"{user},{(3 * day + ord(user) + (late if day > 0 else 0)) % 60},{np.datetime64('2024-04-30') + day}\n"
        for user, days in DAYS.items()
        for day in days
    ]
    (path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(lines))
    (path / "items.csv").write_text("item_id,sid\n" + "".join(f"{item},{item % 8}-{item // 8}\n" for item in range(60)))
    return path


@pytest.mark.training
def test_a_bundle_of_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run_genrec(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, "".join(capsys.readouterr())

    data, other = folder_of(tmp_path / "data"), folder_of(tmp_path / "other", late=7)
    for folder, out, options in (
        (data, "time", [f"--split-at={AT}"]),
        (other, "late", [f"--split-at={AT}"]),
        (data, "loo", []),
    ):
        status, said = run_genrec("build", folder, tmp_path / out, *SMALL, *options)
        assert status == 0, said
        where = f"at {AT}" if options else "leave-one-out"
        assert f"split {where}: " in said
    bundle, late = Bundle(tmp_path / "time"), Bundle(tmp_path / "late")
    assert bundle.manifest.split_at == AT and Bundle(tmp_path / "loo").manifest.split_at is None
    assert bundle.manifest.training["split"] == {
        "protocol": f"at {AT}",
        "at": AT,
        "training_interactions": 7,
        "validation_users": 3,
        "test_users": 2,
    }
    assert bundle.manifest.training["quality"]["users"] == 2
    # What was taken from the moment on is nowhere in the catalogue that is served.
    assert int(bundle.catalog.popularity.sum()) == 7
    np.testing.assert_array_equal(bundle.catalog.popularity, late.catalog.popularity)
    status, said = run_genrec("build", data, tmp_path / "time", *SMALL, "--split-at=2024-05-02", "--keep")
    assert status == 1 and f"split at {AT} (" in said and "now 2024-05-02 (" in said
    status, said = run_genrec("build", data, tmp_path / "loo", *SMALL, "--keep")
    assert status == 0, said

    status, said = run_genrec("evaluate", tmp_path / "time", data)
    assert status == 0 and f"split at {AT}, as the bundle was built" in said and "2 users" in said
    models = [f"--model=time={tmp_path / 'time'}", f"--model=loo={tmp_path / 'loo'}"]
    compared = tmp_path / "compared"
    status, said = run_genrec("compare", data, *models, f"--out={compared}", "--beam-widths=20", "--masks=on")
    assert status == 1 and f"a split at {AT}" in said and "leaving one out; compare bundles of one split" in said
    status, said = run_genrec("compare", data, models[0], f"--out={compared}", "--beam-widths=20", "--masks=on")
    assert status == 0, said
    assert Results.load(compared).record.data.protocol == f"at {AT}"
    assert f"Test split (at {AT}) of `data`: 2 of 2 users" in (compared / "report.md").read_text()
