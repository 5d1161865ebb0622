"""Renders the chart with Helm's own code, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent / "chart"


def render(values: Mapping[str, Any], release: str = "genrec", namespace: str = "default") -> list[dict[str, Any]]:
    """The manifests of a release, tests included, in the order of their templates' names.

    Raises HelmValuesError for values that the schema refuses, and HelmRenderError for those that a template refuses.
    """
    chart = helm_python.Chart.load(CHART)
    chart.validate_schema(dict(values))
    rendered = chart.render(dict(values), name=release, namespace=namespace)
    texts = (text for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt"))
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
