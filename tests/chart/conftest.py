"""Renders the chart for the tests, with the two values that have no default."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from k8s.rendering import CHART, render

Manifests = list[dict[str, Any]]
Rendered = Callable[..., Manifests]

REQUIRED: dict[str, Any] = {
    "image": {"repository": "registry.example/genrec"},
    "bundle": {"location": "pvc://bundles/shop/v1"},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, as Helm merges values."""
    found = copy.deepcopy(base)
    for key, value in over.items():
        found[key] = merged(found[key], value) if isinstance(value, dict) and key in found else value
    return found


def profile(name: str) -> dict[str, Any]:
    """The values of `values-<name>.yaml`."""
    return yaml.safe_load((CHART / f"values-{name}.yaml").read_text())


def one(manifests: Manifests, kind: str, name: str | None = None) -> dict[str, Any]:
    """The one manifest of a kind, and of a name if there are several."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} manifests of kind {kind}, name {name}"
    return found[0]


@pytest.fixture
def chart() -> Rendered:
    """Renders release `genrec` in namespace `shop` with the required values and the given ones over them."""

    def rendered(values: dict[str, Any] | None = None, release: str = "genrec") -> Manifests:
        return render(merged(REQUIRED, values or {}), release, "shop")

    return rendered
