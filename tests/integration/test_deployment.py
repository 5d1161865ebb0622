"""What the chart relies on: the metrics that alerts and dashboard ask for, TLS, and its test pod's command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.live.init import init_catalog
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec.serving.triton import ServerTls, TritonServer, TritonStartError
from genrec_client import Recommender, RecommendError
from genrec_client.channel import TlsOptions
from k8s.rendering import render

VALUES = {
    "image": {"repository": "genrec"},
    "bundle": {"location": "pvc://bundles"},
    "catalog": {"location": "pvc://catalogue"},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "autoscaling": {"mode": "keda", "prometheusAddress": "http://prometheus:9090"},
}
METRIC = re.compile(r"\b((?:nv|genrec|kube)_[a-z0-9_]+)\{([^}]*)\}")
# Labels that Prometheus and the operator add to what is scraped.
SCRAPED = {"namespace", "pod"}


def queries() -> list[str]:
    """Every PromQL expression of the chart."""
    found = []
    for manifest in render(VALUES):
        if manifest["kind"] == "PrometheusRule":
            found += [rule["expr"] for group in manifest["spec"]["groups"] for rule in group["rules"]]
        elif manifest["kind"] == "ScaledObject":
            found += [trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"]]
        elif manifest["kind"] == "ConfigMap":
            panels = json.loads(manifest["data"]["genrec.json"])["panels"]
            found += [target["expr"] for panel in panels for target in panel.get("targets", ())]  # a row has none
    return found


def test_the_server_exports_what_alerts_dashboard_and_autoscaler_ask_for(
    bundle: Bundle, deployment: Deployment, tmp_path: Path
) -> None:
    init_catalog(bundle, str(tmp_path / "catalogue"))
    live = LiveCatalog(str(tmp_path / "catalogue"), tmp_path / "cache")
    with (
        serve_bundle(bundle.path, deployment, live, log_path=tmp_path / "log") as server,
        Recommender(server.grpc_url, timeout_s=30.0) as recommender,
    ):
        recommender.recommend([])
        time.sleep(1.0)  # the verifier publishes its counters now and then
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    exported = {(m[1], tuple(re.findall(r'(\w+)="([^"]*)"', m[2]))) for m in map(METRIC.match, lines) if m}
    asked = {(name, labels) for query in queries() for name, labels in METRIC.findall(query)}
    assert len({name for name, _ in asked}) > 12
    for name, labels in asked:
        if name.startswith("kube_"):
            continue  # kube-state-metrics'
        wanted = re.findall(r'(\w+)(=|!=|=~)"([^"]*)"', labels)
        wanted = [(label, operator, value) for label, operator, value in wanted if label not in SCRAPED]
        series = [dict(found) for exported_name, found in exported if exported_name == name]
        matching = [
            found
            for found in series
            if all((found.get(label) == value) == (operator == "=") for label, operator, value in wanted)
        ]
        assert matching, f"{name}{{{labels}}} is not exported; it has {series[:3]}"
    by = {
        label
        for query in queries()
        for labels in re.findall(r"by \(([\w, ]+)\)", query)
        for label in labels.split(", ")
    }
    assert by == {"bundle_version", "kind", "le", "model", "reason", "rule", "step"}


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_over_tls(
    bundle: Bundle, deployment: Deployment, certificate: tuple[Path, Path], mutual: bool, tmp_path: Path
) -> None:
    cert, key = certificate
    tls = ServerTls(cert, key, client_ca=cert if mutual else None)
    with serve_bundle(bundle.path, deployment, tls=tls, log_path=tmp_path / "log") as server:
        anyone, known = TlsOptions(str(cert)), TlsOptions(str(cert), str(cert), str(key))
        with Recommender(server.grpc_url, tls=known if mutual else anyone, timeout_s=30.0) as client:
            assert len(client.recommend([], top_k=3).items) == 3
        for refused in [False, anyone] if mutual else [False]:
            with Recommender(server.grpc_url, tls=refused, timeout_s=2.0) as client, pytest.raises(RecommendError):
                client.recommend([])


def test_a_missing_tls_file_is_named(bundle: Bundle, tmp_path: Path) -> None:
    tls = ServerTls(tmp_path / "tls.crt", tmp_path / "tls.key")
    with pytest.raises(TritonStartError, match=r"tls\.crt is missing"), serve_bundle(bundle.path, tls=tls):
        pass
    command = [
        sys.executable,
        "-m",
        "genrec.cli",
        "serve",
        str(bundle.path),
        "--tls-cert",
        str(tmp_path / "tls.crt"),
    ]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert alone.returncode == 2 and "--tls-key" in alone.stderr


def test_the_charts_test_pod_gets_a_recommendation(server: TritonServer) -> None:
    pod = next(m for m in render(VALUES) if m["kind"] == "Pod")
    (container,) = pod["spec"]["containers"]
    arguments = [f"--url={server.grpc_url}" if a.startswith("--url=") else a for a in container["args"]]
    command = str(Path(sys.executable).parent / container["command"][0])
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fallback" in done.stdout
