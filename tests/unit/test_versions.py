"""One version for everything: what cannot be made from it has to repeat it."""

from importlib.metadata import version
from pathlib import Path

import yaml

import genrec

ROOT = Path(__file__).parents[2]


def test_packages_and_chart_have_the_version_of_genrec() -> None:
    assert {version(name) for name in ("genrec-triton", "genrec-builders", "genrec-client")} == {genrec.__version__}
    chart = yaml.safe_load((ROOT / "k8s/chart/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == genrec.__version__
