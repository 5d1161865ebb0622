"""Values as users of public charts set them, each file one user's; and what is refused, with its message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from genrec.cli.rules import deployment_rules
from genrec.rules import parse
from k8s.rendering import CHART, REQUIRED, merged, notes, render
from tests.chart.conftest import Manifests, Rendered, assert_accepted, one

USERS = {path.stem: path for path in sorted((Path(__file__).parent / "values").glob("*.yaml"))}
METADATA = {"169.254.169.254/32", "169.254.169.252/32", "169.254.170.23/32", "fd00:ec2::23/128"}


def users(name: str) -> Manifests:
    return render(yaml.safe_load(USERS[name].read_text()), namespace="shop")


def pod(manifests: Manifests) -> dict[str, Any]:
    return one(manifests, "Deployment")["spec"]["template"]["spec"]


def egress(manifests: Manifests) -> list[tuple[list[str], list[int]]]:
    """Addresses and ports of each rule; no address is everywhere."""
    rules = one(manifests, "NetworkPolicy")["spec"]["egress"]
    return [
        (
            [peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer],
            [port["port"] for port in rule["ports"]],
        )
        for rule in rules
    ]


def test_there_are_twenty_of_them() -> None:
    assert len(USERS) >= 20


@pytest.mark.parametrize("name", USERS)
def test_users_values_lint_and_give_valid_manifests(name: str) -> None:
    values = yaml.safe_load(USERS[name].read_text())
    report = helm_python.lint(CHART, values, strict=True)
    assert not report["errors"] and all(message["severity"] < 2 for message in report["messages"]), report
    assert_accepted(users(name))


def test_users_and_groups_are_left_to_openshift() -> None:
    manifests = users("openshift")
    for spec in (pod(manifests), one(manifests, "Pod")["spec"]):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert not {"runAsUser", "runAsGroup"} & container["securityContext"].keys()
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert ([], [53, 53, 5353, 5353]) in egress(manifests)  # OpenShift's DNS pods listen on 5353


def test_a_private_ca_reaches_who_fetches_the_bundle() -> None:
    spec = pod(users("private-ca"))
    (fetch,) = spec["initContainers"]
    assert {"name": "RCLONE_CA_CERT", "value": "/etc/corp-ca/ca.crt"} in fetch["env"]
    for container in (fetch, *spec["containers"]):
        assert {"name": "corp-ca", "mountPath": "/etc/corp-ca", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("name", "annotation"),
    [
        ("gke-workload-identity", "iam.gke.io/gcp-service-account"),
        ("eks-irsa", "eks.amazonaws.com/role-arn"),
        ("azure-workload-identity", "azure.workload.identity/client-id"),
        ("eks-pod-identity", None),
    ],
)
def test_a_cloud_role_needs_its_account_and_the_way_to_its_metadata(name: str, annotation: str | None) -> None:
    manifests = users(name)
    account = one(manifests, "ServiceAccount")["metadata"]
    assert pod(manifests)["serviceAccountName"] == account["name"]
    assert annotation is None or annotation in account["annotations"]
    ways = egress(manifests)
    assert ([], [443]) in ways
    asks = [ports for addresses, ports in ways if METADATA <= set(addresses)]
    assert asks == ([[80, 8080, 987, 988]] if name in ("gke-workload-identity", "eks-pod-identity") else [])


def test_notes_say_who_needs_the_metadata_servers() -> None:
    stored = merged(REQUIRED, {"bundle": {"location": "gs://models/shop"}})
    assert "networkPolicy.cloudMetadata" in notes(stored)
    for more in (
        {"networkPolicy": {"cloudMetadata": True}},
        {"networkPolicy": {"enabled": False}},
        {"bundle": {"credentialsSecret": "gcs"}},
        {"bundle": {"location": "pvc://bundle"}},
    ):
        assert "networkPolicy.cloudMetadata" not in notes(merged(stored, more))
    followed = merged(REQUIRED, {"catalog": {"location": "gs://catalogues/shop"}})
    assert "networkPolicy.cloudMetadata" in notes(followed)
    assert "networkPolicy.cloudMetadata" not in notes(merged(followed, {"catalog": {"credentialsSecret": "gcs"}}))


def test_pull_secrets_are_taken_in_both_spellings() -> None:
    manifests = users("pull-secrets")
    job = one(manifests, "Job")["spec"]["template"]["spec"]
    for spec in (pod(manifests), one(manifests, "Pod")["spec"], job):
        assert spec["imagePullSecrets"] == [{"name": "ghcr"}, {"name": "dockerhub-mirror"}]


def test_an_image_is_pulled_by_its_digest_from_any_port() -> None:
    spec = pod(users("air-gapped"))
    assert spec["containers"][0]["image"].startswith("mirror.internal:5000/genrec/genrec@sha256:3b9f")
    images = [container["image"] for container in (*spec["initContainers"], *spec["containers"])]
    assert all(image.startswith("mirror.internal:5000/") for image in images)


def test_null_takes_out_what_a_cluster_does_not_want() -> None:
    manifests = users("no-resources")
    (container,) = pod(manifests)["containers"]
    assert not {"resources", "securityContext"} & container.keys()
    gone = {"securityContext", "nodeSelector", "tolerations", "affinity", "imagePullSecrets"}
    assert not (gone | {"topologySpreadConstraints"}) & pod(manifests).keys()
    assert "--threads=1" in container["args"]


def test_a_full_gpu_pool_is_rolled_over_in_place() -> None:
    strategy = one(users("one-gpu"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


def test_labels_are_on_everything_and_the_first_that_sets_one_wins() -> None:
    manifests = users("argocd")
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["argocd.argoproj.io/instance"] == "recs-prod" and labels["cost-center"] == "4711"
        assert labels["app.kubernetes.io/managed-by"] == "argocd"
        assert labels["app.kubernetes.io/name"] == "genrec"
        assert manifest["metadata"]["name"].startswith("recs-prod")
    deployment = one(manifests, "Deployment")["spec"]
    assert deployment["revisionHistoryLimit"] == 3
    assert deployment["template"]["metadata"]["labels"]["team"] == "recommendations"
    assert "team" not in deployment["selector"]["matchLabels"]
    assert deployment["template"]["spec"]["containers"][0]["image"].endswith(":1.10")


@pytest.mark.parametrize("release", ["r" * 53, "genrec-" + "x" * 46])
def test_a_long_release_name_is_cut_for_every_object(chart: Rendered, release: str) -> None:
    assert_accepted(chart({"podMonitor": {"enabled": True}}, release=release))


def test_names_that_kubernetes_refuses_are_refused_first(chart: Rendered) -> None:
    for release in ("1shop", "shop.v1"):
        with pytest.raises(helm_python.HelmRenderError, match=r"cannot be the name of a Service.*set fullnameOverride"):
            chart(release=release)
        assert_accepted(chart({"fullnameOverride": "shop"}, release=release))


def test_a_canary_is_found_under_whatever_name(chart: Rendered) -> None:
    selector = one(chart(), "Service", "genrec")["spec"]["selector"]
    canary = chart({"canary": {"of": "genrec"}, "nameOverride": "other", "commonLabels": {"a": "b"}}, release="next")
    assert selector.items() <= one(canary, "Deployment")["spec"]["template"]["metadata"]["labels"].items()


def test_volumes_and_init_containers_come_before_the_bundle() -> None:
    spec = pod(users("model-volume"))
    assert [container["name"] for container in spec["initContainers"]] == ["read-ahead", "bundle"]
    assert {"models", "cache"} < {volume["name"] for volume in spec["volumes"]}
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert {"/models", "/cache", "/bundle", "/dev/shm", "/tmp"} == mounts


@pytest.mark.parametrize(
    ("name", "catalog", "asks"),
    [
        ("live-eks", "s3://shop-catalogue/live", []),
        ("live-gke", "gs://shop-catalogue/live", [[80, 8080, 987, 988]]),
        ("live-azure", "az://catalogue/live", []),
    ],
)
def test_a_live_catalogue_is_read_with_the_role_of_the_pod(name: str, catalog: str, asks: list[list[int]]) -> None:
    manifests = users(name)
    (container,) = pod(manifests)["containers"]
    assert f"--catalog={catalog}" in container["args"] and "envFrom" not in container
    assert [ports for addresses, ports in egress(manifests) if METADATA <= set(addresses)] == asks
    assert ([], [443]) in egress(manifests)


def test_a_live_catalogue_in_the_cluster_is_reached_with_keys_by_plain_http() -> None:
    manifests = users("live-minio")
    (container,) = pod(manifests)["containers"]
    assert "--storage-option=AWS_ALLOW_HTTP=true" in container["args"]
    assert container["envFrom"] == [{"secretRef": {"name": "catalogue-reader"}}]
    assert not [argument for argument in container["args"] if "SECRET" in argument]
    assert [ports for _, ports in egress(manifests)] == [[53, 53, 5353, 5353], [9000]]


def test_rules_of_a_shop_reach_the_server_as_they_were_written(tmp_path: Path) -> None:
    values, manifests = yaml.safe_load(USERS["shop-rules"].read_text()), users("shop-rules")
    (container,) = pod(manifests)["containers"]
    assert {"--rules=/rules/rules.json", "--rules-memory-mb=512"} < set(container["args"])
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "rules")
    assert (mount["mountPath"], mount["readOnly"]) == ("/rules", True)
    (volume,) = (volume for volume in pod(manifests)["volumes"] if volume["name"] == "rules")
    mounted = one(manifests, "ConfigMap", volume["configMap"]["name"])["data"]
    assert mounted.keys() == {"rules.json"}
    (tmp_path / "rules.json").write_text(mounted["rules.json"], "utf-8")
    wanted = json.dumps(values["rules"])
    assert parse(deployment_rules(tmp_path / "rules.json", None)) == parse(wanted)
    assert "rules of the values: at_most, boost, bucket_order, deny, where" in notes(values)
    assert "rules" not in notes(REQUIRED)


def test_a_mesh_is_let_through_where_nothing_else_is() -> None:
    manifests = users("istio")
    assert [ports for _, ports in egress(manifests)] == [[53, 53], [15012]]
    assert one(manifests, "NetworkPolicy")["spec"]["ingress"][-1]["ports"][0]["port"] == 15021
    assert one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"


def test_whole_spread_constraints_replace_the_keys() -> None:
    (constraint,) = pod(users("tainted-pool"))["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"


# The chart as a dependency of another.


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The umbrella chart with its dependencies, as `helm dependency update` leaves it."""
    root = tmp_path_factory.mktemp("parent")
    for folder in (CHART, Path(__file__).parent / "parent"):
        shutil.copytree(folder, root / folder.relative_to(CHART.parents[1]))
    chart = root / "tests" / "chart" / "parent"
    helm_python.dependency_update(chart)
    return chart


def test_a_subchart_follows_its_condition(parent: Path) -> None:
    for values, names in (
        ({}, ["shop-genrec"]),
        ({"genrec": {"enabled": False}}, []),
        ({"second": {"enabled": True}}, ["shop-genrec", "shop-similar"]),
    ):
        manifests = render(values, "shop", "shop", chart=parent)
        assert_accepted(manifests)
        assert sorted(m["metadata"]["name"] for m in manifests if m["kind"] == "Deployment") == names


def test_nulls_reach_a_subchart(parent: Path) -> None:
    values = yaml.safe_load((parent / "openshift.yaml").read_text())
    spec = pod(render(values, "shop", "shop", chart=parent))
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & spec["securityContext"].keys()
    assert "resources" not in spec["containers"][0]


def test_enabled_is_refused_where_nobody_reads_it(chart: Rendered) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"enabled is false.*condition"):
        chart({"enabled": False})


# Refused values.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": {"repository": "r/x:v1"}}, "image.repository is r/x:v1: give the tag as image.tag"),
        ({"image": {"repository": "x:5000"}}, "give the tag as image.tag"),
        (
            {"image": {"repository": "r/x@sha256:" + "0" * 64}},
            "give the digest as image.digest",
        ),
        ({"image": {"tag": 1.1}}, "'/image/tag': got number, want string"),
        ({"server": {"env": [{"name": "N", "value": 2}]}}, "server.env: N is 2, which is no string: put it in quotes"),
        ({"server": {"env": [{"name": "N", "value": True}]}}, "server.env: N is true, which is no string"),
        ({"server": {"env": [{"name": "N", "vlaue": "2"}]}}, "'vlaue' not allowed"),
        ({"server": {"env": {"N": "2"}}}, "'/server/env': got object, want array"),
        (
            {"bundle": {"location": "s3://m/shop", "env": [{"name": "N", "value": 9000}]}},
            "bundle.env: N is 9000, which is no string",
        ),
        ({"imagePullSecrets": [{"name": ""}]}, "/imagePullSecrets/0"),
        ({"imagePullSecrets": [{"secret": "x"}]}, "/imagePullSecrets/0"),
        ({"imagePullSecrets": "registry"}, "'/imagePullSecrets': got string, want array"),
        ({"fullnameOverride": "Shop_1"}, "/fullnameOverride"),
        ({"fullnameOverride": "x" * 53}, "/fullnameOverride"),
        ({"nameOverride": "a.b"}, "/nameOverride"),
        (
            {"commonLabels": {"app.kubernetes.io/name": "x"}},
            "commonLabels: app.kubernetes.io/name is what pods are selected by: leave it out",
        ),
        ({"podLabels": {"genrec/endpoint": "x"}}, "podLabels: genrec/endpoint is what pods are selected by"),
        ({"podLabels": {"version": 7}}, "/podLabels/version"),
        ({"rollout": {"maxSurge": 0}}, "/rollout/maxSurge"),
        ({"networkPolicy": {"cloudMetadata": "gke"}}, "/networkPolicy/cloudMetadata"),
        ({"extraVolumes": [{"emptyDir": {}}]}, "missing property 'name'"),
        ({"extraVolumeMounts": [{"name": "x"}]}, "missing property 'mountPath'"),
        ({"serviceAccount": {"create": False}}, "'create' not allowed"),
        (
            {
                "catalog": {
                    "location": "s3://c/shop",
                    "cache": {"volume": {"persistentVolumeClaim": {"claimName": "c"}}},
                }
            },
            "catalog.cache.volume: every pod writes a cache of its own, and pods would share that claim: use ephemeral",
        ),
    ],
)
def test_a_refusal_says_what_to_write(chart: Rendered, values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        chart(values)
    assert message in str(refusal.value)


def paths(schema: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every value and every group of values."""
    for name, part in schema.get("properties", {}).items():
        yield (*above, name)
        yield from paths(part, (*above, name))


def test_null_leaves_a_value_out_or_is_refused_by_name() -> None:
    """Helm takes a value that is null out of the defaults; no template may stumble over that."""
    switched_on: dict[str, Any] = {
        "catalog": {"location": "s3://catalogues/shop"},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
        "rules": {"deny": ["4711"]},
        "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
        "ingress": {"enabled": True, "host": "recs.example"},
        "knowledgeJob": {"enabled": True, "image": "i:1", "claim": "data", "entities": "users.csv"},
    }
    left_out = 0
    for path in paths(json.loads((CHART / "values.schema.json").read_text())):
        nothing: Any = None
        for name in reversed(path):
            nothing = {name: nothing}
        try:
            manifests = render(merged(merged(REQUIRED, switched_on), nothing))
        except helm_python.HelmValuesError as refusal:
            assert path[-1] in str(refusal), path
        except helm_python.HelmRenderError as refusal:
            assert str(refusal).startswith("execution error") and path[-1] in str(refusal), path  # by `fail`
        else:
            assert_accepted(manifests)
            left_out += 1
    assert left_out > 30
