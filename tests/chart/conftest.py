"""Renders the chart for the tests, with the two values that have no default."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from k8s.rendering import REQUIRED, merged, render

Manifests = list[dict[str, Any]]
Rendered = Callable[..., Manifests]


KUBERNETES = ("1.36", "1.37")  # the two newest that kubernetes-validate knows
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule", "GRPCRoute"}  # kinds of CRDs: it does not know them
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
_NAME = {"Service": re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")}
_OTHER_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def assert_accepted(manifests: Manifests) -> None:
    """An API server would take them: its schemas, and the rules of its own that values can break."""
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        kind, metadata = manifest["kind"], manifest["metadata"]
        if kind not in CUSTOM:
            for version in KUBERNETES:
                kubernetes_validate.validate(manifest, version, strict=True)
        assert _NAME.get(kind, _OTHER_NAME).fullmatch(metadata["name"]), metadata["name"]
        pod = manifest if kind == "Pod" else manifest.get("spec", {}).get("template", {})
        for labels in (metadata["labels"], pod.get("metadata", {}).get("labels", {})):
            assert all(_LABEL.fullmatch(value) for value in labels.values()), labels
        if kind == "Deployment":
            selected = manifest["spec"]["selector"]["matchLabels"].items()
            assert selected <= pod["metadata"]["labels"].items()
            assert manifest["spec"]["strategy"]["rollingUpdate"] != {"maxSurge": 0, "maxUnavailable": 0}
        if "spec" in pod:
            _assert_mounts(pod["spec"])


def _assert_mounts(pod: dict[str, Any]) -> None:
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    for names in (volumes, [container["name"] for container in containers]):
        assert len(set(names)) == len(names), names
    for container in containers:
        mounts = container.get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} <= set(volumes)
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


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
