"""Renders the chart with Helm's own code, without a cluster.

python -m k8s.rendering build/k8s    # the manifests of every profile, for a static checker or for reading
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import typer
import yaml

CHART = Path(__file__).parent / "chart"
PROFILES = ("cpu", "gpu")
# Stand for the two values that have no default.
REQUIRED = {"image": {"repository": "registry.example/genrec"}, "bundle": {"location": "pvc://bundles/shop/v1"}}
KNOWLEDGE = {"knowledgeJob": {"enabled": True, "image": "i:1", "claim": "data", "entities": "users.parquet"}}


def render(
    values: Mapping[str, Any], release: str = "genrec", namespace: str = "default", chart: Path = CHART
) -> list[dict[str, Any]]:
    """The manifests of a release, tests included, in the order of their templates' names.

    Raises HelmValuesError for values that the schema refuses, and HelmRenderError for those that a template refuses.
    """
    rendered = helm_python.Chart.load(chart).render(dict(values), name=release, namespace=namespace)
    texts = (text for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt"))
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def notes(values: Mapping[str, Any], release: str = "genrec", namespace: str = "default") -> str:
    """What Helm prints after an installation."""
    rendered = helm_python.Chart.load(CHART).render(dict(values), name=release, namespace=namespace)
    return next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, as Helm merges values."""
    found = dict(base)
    for key, value in over.items():
        found[key] = merged(found[key], value) if isinstance(value, Mapping) and key in found else value
    return found


def profile(name: str) -> dict[str, Any]:
    """The values of `values-<name>.yaml`."""
    return yaml.safe_load((CHART / f"values-{name}.yaml").read_text())


def main(out: Path) -> None:
    """Write the manifests of the defaults, of every profile, and with the knowledge Job to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, values in {"defaults": {}, "knowledge": KNOWLEDGE, **{name: profile(name) for name in PROFILES}}.items():
        manifests = render(merged(REQUIRED, values), namespace="shop")
        (out / f"{name}.yaml").write_text(yaml.safe_dump_all(manifests))


if __name__ == "__main__":
    typer.run(main)
