"""The measurement of the live catalogue's store, at its smallest."""

from __future__ import annotations

import json
from pathlib import Path

from perf.catalog import store


def test_every_step_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    store.main(tmp_path, sizes="500", changes=20, rounds=2)
    found = json.loads((tmp_path / store.RESULTS).read_text())
    spent = found["runs"]["500"]
    assert len(spent["commit"]) == len(spent["read the commit"]) == 2
    assert {"init", "read the base", "rollback over 1", "rollback over 2", "compact"} <= set(spent)
    assert min(min(times) for times in spent.values()) > 0 and found["settings"]["changes"] == 20
    assert [path.name for path in tmp_path.iterdir()] == [store.RESULTS]
