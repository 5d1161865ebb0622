"""The chart as Helm renders it: valid manifests for every switch, what each template promises, and refused values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from genrec.cli.arguments import storage_options
from genrec.cli.main import app
from genrec.rules import schema
from k8s.rendering import CHART, KNOWLEDGE, PROFILES, REQUIRED, merged, profile
from tests.chart.conftest import Manifests, Rendered, assert_accepted, one
from tests.needs import missing

KNOWN = {
    "affinity", "extraVolumeMounts", "fullnameOverride", "nodeSelector", "podAnnotations", "podDisruptionBudget",
    "podLabels", "priorityClassName", "replicaCount", "runtimeClassName", "securityContext", "tolerations",
}  # fmt: skip
ALERTS = Path(__file__).parent / "alerts_test.yaml"

EVERYTHING: dict[str, Any] = {
    "bundle": {"location": "s3://models/shop/v7", "credentialsSecret": "s3"},
    "catalog": {
        "location": "s3://catalogues/shop",
        "storageOptions": {"AWS_REGION": "eu-central-1"},
        "credentialsSecret": "s3",
        "cache": {"volume": {"ephemeral": {"volumeClaimTemplate": {"spec": {"storageClassName": "fast"}}}}},
    },
    "rules": {"where": {"attribute": "in_stock", "is": True}},
    "imagePullSecrets": ["registry"],
    "podMonitor": {"enabled": True, "labels": {"team": "recs"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "gateway": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["recs.example"]},
    "ingress": {"enabled": True, "host": "recs.example", "tlsSecret": "web"},
    "tls": {"secretName": "recs-tls", "clientAuth": True},
    "traces": {"collector": "http://collector.observability:4318", "oneIn": 1000},
    "autoscaling": {"mode": "keda", "prometheusAddress": "http://prometheus:9090"},
    "server": {"env": [{"name": "A", "value": "b"}], "extraArgs": ["--timeout-ms=50"]},
    "nodeSelector": {"pool": "recs"},
    "tolerations": [{"key": "recs", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podLabels": {"team": "recs"},
    "podAnnotations": {"a": "b"},
    "serviceAccount": {"annotations": {"role": "reader"}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "service": {"annotations": {"a": "b"}},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{name: profile(name) for name in PROFILES},
    "everything": EVERYTHING,
    "oci": {"bundle": {"location": "oci://registry.example/shop:v7", "registrySecret": "registry"}},
    "gs": {"bundle": {"location": "gs://models/shop/v7"}},
    "az": {"bundle": {"location": "az://models/shop/v7"}},
    "whole claim": {"bundle": {"location": "pvc://bundle"}},
    "knowledge": KNOWLEDGE,
    "canary": {"canary": {"of": "genrec"}},
    "live claim": {"catalog": {"location": "pvc://catalogues/shop"}},
    "whole live claim": {"catalog": {"location": "pvc://catalogue"}},
    "live gs": {"catalog": {"location": "gs://catalogues/shop"}},
    "live az": {"catalog": {"location": "az://catalogues/shop"}},
    "bare": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "service": {"headless": False},
        "serviceAccount": {"name": "default"},
        "topologySpreadKeys": [],
    },
    "digest": {"image": {"digest": "sha256:" + "0" * 64}},
}


def server(manifests: Manifests) -> dict[str, Any]:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def pod(manifests: Manifests) -> dict[str, Any]:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_lints_and_gives_valid_manifests(chart: Rendered, switch: str) -> None:
    values = merged(REQUIRED, SWITCHES[switch])
    report = helm_python.lint(CHART, values, strict=True)
    assert not report["errors"] and all(message["severity"] < 2 for message in report["messages"]), report
    manifests = chart(SWITCHES[switch])
    assert_accepted(manifests)
    for manifest in manifests:
        assert manifest["metadata"]["namespace"] == "shop"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "genrec"


def test_the_validator_can_fail(chart: Rendered) -> None:
    broken = one(chart(), "Deployment")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        assert_accepted([broken])


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"server": {"maxBatchSize": 0}}, "/server/maxBatchSize"),
        ({"server": {"engine": "tensorrt"}}, "/server/engine"),
        ({"server": {"precision": "fp8"}}, "/server/precision"),
        ({"server": {"device": "gpu"}}, "/server/device"),
        ({"server": {"buckets": "1,4"}}, "/server/buckets"),
        ({"server": {"thread": 2}}, "'thread'"),
        ({"replicaCount": "2"}, "/replicaCount"),
        ({"replicas": 3}, "'replicas'"),
        ({"knowledgeJob": {"shards": 0}}, "/knowledgeJob/shards"),
        ({"knowledgeJob": {"run": "Second run"}}, "/knowledgeJob/run"),
        ({"bundle": {"location": "ftp://models/shop"}}, "/bundle/location"),
        ({"bundle": {"location": ""}}, "/bundle/location"),
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"rollout": {"maxSurge": 0}}, "/rollout/maxSurge"),
        ({"drain": {"drainSeconds": 0}}, "/drain/drainSeconds"),
        ({"sharedMemory": "64MB"}, "/sharedMemory"),
        ({"autoscaling": {"mode": "hpa"}}, "/autoscaling/mode"),
        ({"tls": {"clientAuth": True}}, "/tls/secretName"),
        ({"front": {"enabled": False, "tokensSecret": "clients"}}, "/front/tokensSecret"),
        ({"prometheusRule": {"staleDraftsShare": 5}}, "/prometheusRule/staleDraftsShare"),
        ({"catalog": {"location": "/mnt/catalogue"}}, "/catalog/location"),
        ({"catalog": {"location": "s3://catalogues"}}, "/catalog/location"),
        ({"catalog": {"location": "oci://catalogues/shop"}}, "/catalog/location"),
        ({"catalog": {"storageOptions": {"AWS_ALLOW_HTTP": True}}}, "/catalog/storageOptions/AWS_ALLOW_HTTP"),
        ({"catalog": {"storageOptions": {"a=b": "c"}}}, "/catalog/storageOptions"),
        ({"catalog": {"maxLagSeconds": 0}}, "/catalog/maxLagSeconds"),
        ({"catalog": {"pollSeconds": 0}}, "/catalog/pollSeconds"),
        ({"catalog": {"cache": {"sizeLimit": "4GB"}}}, "/catalog/cache/sizeLimit"),
        ({"prometheusRule": {"catalogDrift": 0}}, "/prometheusRule/catalogDrift"),
        ({"server": {"rulesMemoryMb": 0}}, "/server/rulesMemoryMb"),
        ({"rules": {"were": {}}}, "'were'"),
        ({"rules": {"where": {"all": [{"attribut": "price", "is": 1}]}}}, "/rules/where/all/0"),
        ({"rules": {"where": {"attribute": "price", "<": True}}}, "/rules/where/<"),
        ({"rules": {"deny": [4711]}}, "/rules/deny/0"),
        ({"rules": {"explain": True}}, "'explain'"),
        ({"rules": "in_stock"}, "/rules"),
        ({"traces": {"collector": "collector:4318"}}, "/traces/collector"),
        ({"traces": {"oneIn": -1}}, "/traces/oneIn"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(chart: Rendered, values: dict[str, Any], path: str) -> None:
    with pytest.raises(helm_python.HelmValuesError) as refusal:
        chart(values)
    assert path in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"autoscaling": {"mode": "keda"}}, "autoscaling.prometheusAddress"),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs"),
        ({"ingress": {"enabled": True}}, "ingress.host"),
        ({"knowledgeJob": {"enabled": True}}, "knowledgeJob.image"),
        ({"knowledgeJob": {"enabled": True, "image": "i:1"}}, "knowledgeJob.entities"),
        ({"knowledgeJob": {"enabled": True, "image": "i:1", "entities": "users.csv"}}, "knowledgeJob.claim"),
    ],
)
def test_a_switch_names_what_it_needs(chart: Rendered, values: dict[str, Any], missing: str) -> None:
    with pytest.raises(helm_python.HelmError, match=missing):
        chart(values)


def test_image_and_bundle_are_all_that_a_user_must_set() -> None:
    for absent in REQUIRED:
        values = {name: value for name, value in REQUIRED.items() if name != absent}
        with pytest.raises(helm_python.HelmError, match=absent):
            helm_python.Chart.load(CHART).validate_schema(values)


def test_every_value_is_in_the_schema_and_explained() -> None:
    text = (CHART / "values.yaml").read_text()
    values, schema = yaml.safe_load(text), json.loads((CHART / "values.schema.json").read_text())

    def same(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert schema["additionalProperties"] is False, path
        assert values.keys() == schema["properties"].keys() - (set() if path else {"global", "enabled"}), path
        for name, part in schema["properties"].items():
            if "properties" in part and name != "resources":
                same(values[name], part, f"{path}.{name}")

    same(values, schema, "")
    # A comment above a section or within it; without one only what Kubernetes itself calls so, or follows one.
    sections = re.findall(r"((?:^#.*\n)*)^(\w+):(.*\n(?:^(?: .*)?\n)*)", text, re.M)
    assert {name for _, name, _ in sections} == values.keys()
    assert {name for above, name, within in sections if not above and "#" not in within} <= KNOWN


def test_a_rollout_takes_no_ready_pod_away_and_drains_before_it_stops(chart: Rendered) -> None:
    manifests = chart({"drain": {"drainSeconds": 7, "exitSeconds": 9}})
    assert one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert server(manifests)["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert "--exit-timeout-s=9" in server(manifests)["args"]
    assert pod(manifests)["terminationGracePeriodSeconds"] > 7 + 9 + 5  # genrec serve kills 5 s after its limit


def test_the_server_is_started_with_options_that_it_has(chart: Rendered) -> None:
    import typer

    command = typer.main.get_command(app)
    for switch in SWITCHES.values():
        arguments = list(server(chart(switch))["args"])
        assert arguments[:2] == ["serve", "/bundle"]
        command.commands["serve"].make_context("serve", arguments[1:])


def test_probes_ask_triton_and_leave_time_to_start(chart: Rendered) -> None:
    container = server(chart({"probes": {"startupSeconds": 600}}))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8001, "http": 8000, "metrics": 8002, "front-metrics": 8004}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"]["port"] == "http"
        assert container[name]["httpGet"]["path"].startswith("/v2/")
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/recommend/ready"
    # A server that is started again inside the container may take as long as at first.
    assert container["livenessProbe"]["failureThreshold"] == 6 + 600 / container["livenessProbe"]["periodSeconds"]
    at_once = server(chart({"server": {"restarts": 0}}))
    assert at_once["livenessProbe"]["failureThreshold"] == 6 and "--restarts=0" in at_once["args"]


def test_containers_have_no_privileges_and_write_only_where_they_must(chart: Rendered) -> None:
    for switch in SWITCHES:
        manifests = chart(SWITCHES[switch])
        jobs = [manifest["spec"]["template"]["spec"] for manifest in manifests if manifest["kind"] == "Job"]
        for spec in (pod(manifests), one(manifests, "Pod")["spec"], *jobs):
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 10000
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"]
                assert not security["allowPrivilegeEscalation"] and security["capabilities"] == {"drop": ["ALL"]}
                assert security["seccompProfile"] == {"type": "RuntimeDefault"} and not security.get("privileged")
                assert container["resources"]["limits"]["memory"]
        mounts = {mount["mountPath"]: mount for mount in server(manifests)["volumeMounts"]}
        assert mounts["/bundle"]["readOnly"] and {"/tmp", "/dev/shm"} < mounts.keys()
        shared = next(volume for volume in pod(manifests)["volumes"] if volume["name"] == "shm")
        assert shared["emptyDir"]["medium"] == "Memory" and shared["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize(
    ("location", "claim", "sub_path"),
    [("pvc://bundles/shop/v1", "bundles", "shop/v1"), ("pvc://bundle", "bundle", None)],
)
def test_a_claim_is_mounted_where_the_bundle_lies(
    chart: Rendered, location: str, claim: str, sub_path: str | None
) -> None:
    manifests = chart({"bundle": {"location": location}})
    assert "initContainers" not in pod(manifests)
    assert pod(manifests)["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    assert server(manifests)["volumeMounts"][0].get("subPath") == sub_path
    assert one(manifests, "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize(
    ("location", "arguments"),
    [
        ("s3://models/shop/v7/", ["copy", ":s3,env_auth:models/shop/v7", "/bundle"]),
        ("gs://models/shop", ["copy", ":gcs,env_auth:models/shop", "/bundle"]),
        ("az://models/shop", ["copy", ":azureblob,env_auth:models/shop", "/bundle"]),
        ("oci://registry.example:5000/shop:v7", ["pull", "registry.example:5000/shop:v7", "--output", "/bundle"]),
    ],
)
def test_an_init_container_fetches_the_bundle(chart: Rendered, location: str, arguments: list[str]) -> None:
    manifests = chart({"bundle": {"location": location, "credentialsSecret": "s3"}})
    (fetch,) = pod(manifests)["initContainers"]
    assert fetch["args"][: len(arguments)] == arguments
    assert fetch["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "bundle", "mountPath": "/bundle"} in fetch["volumeMounts"]
    ports = [port["port"] for rule in one(manifests, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 5353, 5353, 443]


def test_without_a_live_catalogue_nothing_is_there_for_one(chart: Rendered) -> None:
    manifests = chart({"prometheusRule": {"enabled": True}})
    assert not [argument for argument in server(manifests)["args"] if "catalog" in argument or "ready" in argument]
    assert not [volume for volume in pod(manifests)["volumes"] if "catalog" in volume["name"]]
    assert "envFrom" not in server(manifests)
    (group,) = one(manifests, "PrometheusRule")["spec"]["groups"]
    assert not [rule for rule in group["rules"] if "lag" in rule["expr"] or "stuck" in rule["expr"]]


def test_readiness_follows_the_live_catalogue_and_nothing_else_does(chart: Rendered) -> None:
    container = server(chart({"catalog": {"location": "s3://catalogues/shop", "maxLagSeconds": 90}}))
    assert {"--max-lag-s=90", "--ready-port=8003"} < set(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "ready"} and ports["ready"] == 8003
    # A store that is away must not restart a server that has something to serve.
    for name in ("startupProbe", "livenessProbe"):
        assert container[name]["httpGet"]["port"] == "http"


def test_a_store_is_named_as_the_server_takes_it(chart: Rendered) -> None:
    options = {"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": "http://minio:9000/?a=b c"}
    values = {"location": "s3://catalogues/shop", "storageOptions": options, "credentialsSecret": "keys"}
    container = server(chart({"catalog": values}))
    assert {"--catalog=s3://catalogues/shop", "--catalog-poll-s=1"} < set(container["args"])
    given = [text.split("=", 1)[1] for text in container["args"] if text.startswith("--storage-option=")]
    assert storage_options(given) == options
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


@pytest.mark.parametrize(
    ("location", "claim", "sub_path"),
    [("pvc://catalogues/shop/live/", "catalogues", "shop/live"), ("pvc://catalogue", "catalogue", None)],
)
def test_a_live_catalogue_in_a_claim_is_read_only(
    chart: Rendered, location: str, claim: str, sub_path: str | None
) -> None:
    manifests = chart({"catalog": {"location": location}})
    (mount,) = (mount for mount in server(manifests)["volumeMounts"] if mount["name"] == "catalog")
    assert (mount["mountPath"], mount["readOnly"], mount.get("subPath")) == ("/catalog", True, sub_path)
    (volume,) = (volume for volume in pod(manifests)["volumes"] if volume["name"] == "catalog")
    assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    assert "--catalog=/catalog" in server(manifests)["args"]
    assert one(manifests, "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {"sizeLimit": "4Gi"}}),
        ({"sizeLimit": "9Gi"}, {"emptyDir": {"sizeLimit": "9Gi"}}),
        ({"volume": {"ephemeral": {}}}, {"ephemeral": {}}),
    ],
)
def test_each_pod_has_a_cache_of_its_own(chart: Rendered, cache: dict[str, Any], volume: dict[str, Any]) -> None:
    manifests = chart({"catalog": {"location": "s3://catalogues/shop", "cache": cache}})
    assert "--catalog-cache=/catalog-cache" in server(manifests)["args"]
    assert {"name": "catalog-cache", "mountPath": "/catalog-cache"} in server(manifests)["volumeMounts"]
    assert {"name": "catalog-cache", **volume} in pod(manifests)["volumes"]


@pytest.mark.parametrize(
    ("bundle", "bundle_egress", "catalog_egress", "ports"),
    [
        ("pvc://bundles", [], [], [53, 53, 5353, 5353, 443]),
        ("s3://models/shop", [], [], [53, 53, 5353, 5353, 443]),
        ("s3://models/shop", [9000], [], [53, 53, 5353, 5353, 443, 9000]),
        ("s3://models/shop", [], [9001], [53, 53, 5353, 5353, 443, 9001]),
        ("s3://models/shop", [9000], [9001], [53, 53, 5353, 5353, 9000, 9001]),
        ("pvc://bundles", [9000], [9001], [53, 53, 5353, 5353, 9001]),
    ],
)
def test_the_way_to_the_store_is_open_and_no_other(
    chart: Rendered, bundle: str, bundle_egress: list[int], catalog_egress: list[int], ports: list[int]
) -> None:
    def rules(allowed: list[int]) -> list[dict[str, Any]]:
        return [{"ports": [{"protocol": "TCP", "port": port}]} for port in allowed]

    values = {
        "bundle": {"location": bundle},
        "catalog": {"location": "s3://catalogues/shop"},
        "networkPolicy": {"bundleEgress": rules(bundle_egress), "catalogEgress": rules(catalog_egress)},
    }
    egress = one(chart(values), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == ports


@pytest.mark.parametrize(
    ("collector", "ports"),
    [
        ("", []),
        ("http://collector.observability:4318", [53, 53, 5353, 5353, 4318]),
        ("https://otlp.example/v1/traces", [53, 53, 5353, 5353, 443]),
        ("http://collector:9999/v1/traces", [53, 53, 5353, 5353, 9999]),
    ],
)
def test_traces_have_their_way_out(chart: Rendered, collector: str, ports: list[int]) -> None:
    manifests = chart({"traces": {"collector": collector, "oneIn": 50}})
    told = [argument for argument in server(manifests)["args"] if argument.startswith("--trace")]
    assert told == ([f"--traces={collector}", "--trace-one-in=50"] if collector else [])
    egress = one(manifests, "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == ports
    narrow = {"networkPolicy": {"tracesEgress": [{"ports": [{"protocol": "TCP", "port": 1}]}]}}
    egress = one(chart(merged({"traces": {"collector": "http://c:4318"}}, narrow)), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53, 5353, 5353, 1]


def test_without_rules_nothing_is_there_for_them(chart: Rendered) -> None:
    manifests = chart()
    assert not [manifest for manifest in manifests if manifest["kind"] == "ConfigMap"]
    assert not [argument for argument in server(manifests)["args"] if argument.startswith("--rules=")]
    assert "--rules-memory-mb=256" in server(manifests)["args"]
    assert one(manifests, "Deployment")["spec"]["template"]["metadata"]["annotations"].keys() == {"genrec/bundle"}


def test_the_schema_of_rules_is_the_one_that_the_server_reads_by() -> None:
    """Write `genrec rules schema` into `$defs`, and leave out `explain`, which a deployment may not ask for."""
    own = json.loads((CHART / "values.schema.json").read_text())
    form = schema()
    parts = form.pop("$defs")
    del form["properties"]["explain"]
    assert own["$defs"] == {**parts, "Rules": form}
    assert own["properties"]["rules"] == {"$ref": "#/$defs/Rules"}


def test_other_rules_are_another_rollout_and_the_same_are_none(chart: Rendered) -> None:
    first, same, other = (
        one(chart({"rules": rules}), "Deployment")["spec"]["template"]
        for rules in (
            {"deny": ["a"], "allow": ["b"]},
            {"allow": ["b"], "deny": ["a"]},
            {"deny": ["c"], "allow": ["b"]},
        )
    )
    assert first == same != other


def test_another_bundle_or_image_is_another_rollout(chart: Rendered) -> None:
    templates = [
        one(chart(values), "Deployment")["spec"]["template"]
        for values in ({}, {"bundle": {"location": "pvc://bundles/shop/v2"}}, {"image": {"tag": "2"}})
    ]
    assert templates[0] != templates[1] != templates[2] != templates[0]


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ({"requests": {"cpu": "2"}, "limits": {"cpu": "3500m"}}, 4),
        ({"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}, 1),
        ({"requests": {"cpu": 8}}, 8),
    ],
)
def test_the_engine_gets_as_many_threads_as_the_pod_has_cpus(
    chart: Rendered, resources: dict[str, Any], threads: int
) -> None:
    assert f"--threads={threads}" in server(chart({"resources": resources}))["args"]
    assert "--threads=5" in server(chart({"resources": resources, "server": {"threads": 5}}))["args"]
    shared = server(chart({"resources": resources, "server": {"instances": 2}}))["args"]
    fast = server(chart({"server": {"engine": "openvino", "precision": "bf16"}}))["args"]
    assert "--engine=openvino" in fast and "--precision=bf16" in fast
    assert "--instances=2" in shared and f"--threads={max(1, threads // 2)}" in shared


def test_a_gpu_pool_runs_pytorch_in_bf16_and_records_what_can_come(chart: Rendered) -> None:
    found = server(chart(profile("gpu")))
    assert {"--engine=torch", "--device=cuda", "--precision=bf16", "--buckets=auto"} <= set(found["args"])
    assert found["resources"]["limits"]["nvidia.com/gpu"] == 1
    (tmp,) = [each for each in pod(chart(profile("gpu")))["volumes"] if each["name"] == "tmp"]
    assert tmp["emptyDir"] == {"sizeLimit": "4Gi"}, "for kernels that are compiled at first use"
    named = server(chart({"server": {"engine": "torch", "buckets": "1,4x64"}}))["args"]
    assert "--buckets=1,4x64" in named and not any(word.startswith("--device") for word in named)
    assert not any(word.startswith(("--device", "--buckets")) for word in server(chart({}))["args"])


def test_an_engine_that_is_measured_gets_the_processors_and_time(chart: Rendered) -> None:
    resources = {"resources": {"requests": {"cpu": "3500m", "memory": "2Gi"}}}
    found = server(chart({"server": {"engine": "auto", "aim": "throughput"}} | resources))
    assert {"--engine=auto", "--aim=throughput", "--cores=4", "--threads=0", "--precision=auto"} <= set(found["args"])
    assert not any(argument.startswith("--instances") for argument in found["args"])
    assert found["startupProbe"]["failureThreshold"] == server(chart({}))["startupProbe"]["failureThreshold"] + 300
    some = server(chart({"server": {"engine": "auto", "threads": 2, "instances": 2}} | resources))["args"]
    assert "--threads=2" in some and "--instances=2" in some
    assert not any(argument.startswith(("--aim", "--cores")) for argument in server(chart({}))["args"])


def selects(selector: dict[str, str], manifests: Manifests) -> bool:
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return selector.items() <= labels.items()


def test_a_canary_stands_behind_the_stable_services_and_is_apart_in_all_else(chart: Rendered) -> None:
    stable = chart(EVERYTHING)
    canary = chart(merged(EVERYTHING, {"canary": {"of": "genrec"}}), release="genrec-canary")
    assert not [m for m in canary if m["kind"] == "Service"]
    for name in ("genrec", "genrec-headless"):
        selector = one(stable, "Service", name)["spec"]["selector"]
        assert selects(selector, stable) and selects(selector, canary)
    own = [m["spec"]["selector"]["matchLabels"] for m in canary if m["kind"] in ("Deployment", "PodMonitor")]
    assert len(own) == 2 and all(selects(labels, canary) and not selects(labels, stable) for labels in own)
    # Pods of the two releases are told apart by name in PromQL.
    for ours, theirs in ((stable, canary), (canary, stable)):
        query = one(ours, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
        (pattern,) = set(re.findall(r'pod=~"([^"]+)"', query))
        assert re.fullmatch(pattern, one(ours, "Deployment")["metadata"]["name"] + "-7c9f8d5b4-x2k1p")
        assert not re.fullmatch(pattern, one(theirs, "Deployment")["metadata"]["name"] + "-7c9f8d5b4-x2k1p")
    assert one(canary, "Pod")["spec"]["containers"][0]["args"][1] == "--url=genrec:8001"


def test_services_speak_grpc(chart: Rendered) -> None:
    plain = chart()
    ports = one(plain, "Service", "genrec")["spec"]["ports"]
    assert [(port["name"], port["appProtocol"]) for port in ports] == [("grpc", "kubernetes.io/h2c"), ("http", "http")]
    assert one(plain, "Service", "genrec-headless")["spec"]["clusterIP"] == "None"
    assert selects(one(plain, "Service", "genrec")["spec"]["selector"], plain)


def test_tls_encrypts_grpc_and_hides_http(chart: Rendered) -> None:
    manifests = chart({"tls": {"secretName": "recs-tls"}})
    assert {"--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"} < set(server(manifests)["args"])
    assert [port["name"] for port in one(manifests, "Service", "genrec")["spec"]["ports"]] == ["grpc"]
    allowed = [port["port"] for rule in one(manifests, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert allowed == ["grpc", "metrics", "front-metrics"]
    mutual = chart({"tls": {"secretName": "recs-tls", "clientAuth": True}})
    assert "--tls-client-ca=/tls/ca.crt" in server(mutual)["args"]
    assert "--cert-file=/tls/tls.crt" in one(mutual, "Pod")["spec"]["containers"][0]["args"]


def test_tokens_and_the_key_of_bundles_come_from_secrets(chart: Rendered) -> None:
    none, args = chart(), ["--tokens=/tokens/tokens", "--public-key=/public-key/public.pem"]
    assert not set(args) & set(server(none)["args"])
    manifests = chart({"front": {"tokensSecret": "clients"}, "bundle": {"publicKeySecret": "signer"}})
    assert set(args) < set(server(manifests)["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in server(manifests)["volumeMounts"]}
    assert (mounted["tokens"], mounted["public-key"]) == ("/tokens", "/public-key")
    volumes = {
        v["name"]: v["secret"]["secretName"]
        for v in one(manifests, "Deployment")["spec"]["template"]["spec"]["volumes"]
        if "secret" in v
    }
    assert (volumes["tokens"], volumes["public-key"]) == ("clients", "signer")
    assert one(manifests, "Pod")["spec"]["containers"][0]["args"][0] == "ready"  # it has no token


def test_the_front_stands_before_every_server_unless_it_is_switched_off(chart: Rendered) -> None:
    monitored = {"podMonitor": {"enabled": True}}
    manifests = chart({"front": {"maxRequestBytes": 2**26}} | monitored)
    assert {"--front", "--front-metrics-port=8004", "--max-request-bytes=67108864"} < set(server(manifests)["args"])
    scraped = [at["port"] for at in one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]]
    assert scraped == ["metrics", "front-metrics"]
    off = chart({"front": {"enabled": False}} | monitored)
    assert "--no-front" in server(off)["args"] and not any("--front" in word for word in server(off)["args"])
    for manifest in (server(off), one(off, "PodMonitor"), one(off, "NetworkPolicy")):
        assert "front-metrics" not in str(manifest)


def test_replicas_are_left_to_the_autoscaler(chart: Rendered) -> None:
    assert one(chart({"replicaCount": 3}), "Deployment")["spec"]["replicas"] == 3
    by_cpu = chart({"autoscaling": {"mode": "cpu", "targetCpuPercent": 70}})
    assert "replicas" not in one(by_cpu, "Deployment")["spec"]
    target = one(by_cpu, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["resource"]["target"]
    assert target["averageUtilization"] == 70
    by_queue = chart({"autoscaling": {"mode": "keda", "prometheusAddress": "http://p:9090", "targetQueueRatio": 0.7}})
    (trigger,) = one(by_queue, "ScaledObject")["spec"]["triggers"]
    assert trigger["metricType"] == "Value" and trigger["metadata"]["threshold"] == "0.7"
    assert one(by_queue, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == "genrec"


def test_routes_let_nothing_but_recommendations_and_health_in(chart: Rendered) -> None:
    manifests = chart(EVERYTHING)
    calls = {"ModelInfer", "ServerLive", "ServerReady", "ModelReady"}
    matches = one(manifests, "GRPCRoute")["spec"]["rules"][0]["matches"]
    assert {match["method"]["method"] for match in matches} == calls
    paths = one(manifests, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert {path["path"].rpartition("/")[2] for path in paths} == calls


def test_disruptions_monitoring_and_the_network_reach_the_right_pods(chart: Rendered) -> None:
    manifests = chart(EVERYTHING)
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert selects(one(manifests, kind)["spec"]["selector"]["matchLabels"], manifests)
    assert selects(one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"], manifests)
    for spread in pod(manifests)["topologySpreadConstraints"]:
        assert selects(spread["labelSelector"]["matchLabels"], manifests)
    closed = chart({"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "web"}}}]}})
    assert one(closed, "NetworkPolicy")["spec"]["ingress"][0]["from"] == [
        {"podSelector": {"matchLabels": {"app": "web"}}}
    ]


def test_the_dashboard_is_a_dashboard(chart: Rendered) -> None:
    dashboard = json.loads(one(chart(EVERYTHING), "ConfigMap", "genrec-dashboard")["data"]["genrec.json"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) >= 10
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Live catalogue", "Rules"]
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "namespace", "release"}


def test_every_alert_has_a_runbook(chart: Rendered) -> None:
    (group,) = one(chart(EVERYTHING), "PrometheusRule")["spec"]["groups"]
    runbooks = (CHART.parents[1] / "docs" / "deployment.md").read_text()
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"].endswith(f"docs/deployment.md#{rule['alert'].lower()}")
        assert f"### {rule['alert']}\n" in runbooks


def test_alerts_fire_when_they_should_and_else_not(chart: Rendered, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        missing("promtool is not installed: it is in Debian's package prometheus")
    rules = one(chart(EVERYTHING), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(ALERTS, tmp_path)
    subprocess.run(["promtool", "check", "rules", "rules.yaml"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(["promtool", "test", "rules", ALERTS.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"] for test in yaml.safe_load(ALERTS.read_text())["tests"] for case in test["alert_rule_test"]
    }
    assert tested == {rule["alert"] for rule in rules["groups"][0]["rules"]}


def test_the_knowledge_job_gives_every_pod_a_shard_of_its_own(chart: Rendered) -> None:
    job = one(chart(SWITCHES["knowledge"] | {"replicaCount": 1}), "Job")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["completionMode"], job["completions"], job["template"]["spec"]["restartPolicy"]) == (
        "Indexed",
        4,
        "Never",
    )
    assert container["command"] == ["genrec", "knowledge", "generate"]
    assert container["args"] == [
        "/data/knowledge",
        "--entities=/data/users.parquet",
        "--out=/data/texts/$(JOB_COMPLETION_INDEX).parquet",
        "--shard=$(JOB_COMPLETION_INDEX)/4",
    ]
    assert [variable["name"] for variable in container["env"]] == ["JOB_COMPLETION_INDEX"]
