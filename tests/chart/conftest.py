"""Renders the chart for the tests, with the two values that have no default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from k8s.rendering import REQUIRED, merged, render

Manifests = list[dict[str, Any]]
Rendered = Callable[..., Manifests]


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
