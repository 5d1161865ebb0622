"""What rules cost through a server: the measurement at its smallest."""

from __future__ import annotations

import json
from pathlib import Path

from genrec.bundle import Bundle
from genrec_builders.data import Dataset, write_dataset
from perf.rules import served


def test_every_scenario_is_measured_and_no_rule_is_broken(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "shop")
    served.main(
        bundle.path, tmp_path / "shop", tmp_path, items=3000, only="", users=3, rounds=1, seconds=3.0, distinct=10
    )
    found = json.loads((tmp_path / served.RESULTS).read_text())
    assert set(found) == {f"{name}-3000" for name in ("known", "saturated", "rotation", "changes")}
    assert found["known-3000"]["leaves 1 %"]["p50_ratio"] > 0
    assert found["changes-3000"]["broken_items"] == 0 and found["changes-3000"]["versions"] > 1
