"""The Deployment controller on one machine: replicas of a rendered chart, rolled over under load. An emulation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from genrec_client import Recommender
from k8s.e2e.load import Traffic
from k8s.e2e.pods import Host, Pod, PodError, podman

Manifest = dict[str, Any]
# So long after SIGTERM clients still know the address, as happens while a change of endpoints travels.
STALE_S = 5.0
SIGKILLED = 137


class EmulatedDeployment:
    """The replicas of a release. One is replaced after the other, with maxSurge 1 and maxUnavailable 0.

    pods: the replicas that are endpoints. ready_s: seconds from start to ready of every pod so far. killed: names of
    pods that did not end within their grace period.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._started = 0
        self.pods: list[Pod] = []
        self.ready_s: list[float] = []
        self.killed: list[str] = []

    def install(self, manifests: Sequence[Manifest]) -> None:
        """Start the replicas, one after the other: in a cluster they would not share this machine's cores.

        Raises PodError when one does not become ready.
        """
        deployment = only(manifests, "Deployment")
        for _ in range(deployment["spec"]["replicas"]):
            self.pods.append(self._start(deployment))

    def roll_over(self, manifests: Sequence[Manifest], traffic: Traffic) -> None:
        """Replace every replica by one of `manifests`, while `traffic` asks those that are there.

        Raises PodError when a new one does not become ready, or its strategy cannot be carried out.
        """
        deployment = only(manifests, "Deployment")
        strategy = deployment["spec"]["strategy"]["rollingUpdate"]
        if (strategy["maxSurge"], strategy["maxUnavailable"]) != (1, 0):
            raise PodError(f"only maxSurge 1 with maxUnavailable 0 can be carried out, not {strategy}")
        for old in self.pods.copy():
            self.pods.append(self._start(deployment))
            traffic.use(self._urls())
            time.sleep(deployment["spec"].get("minReadySeconds", 0))
            self._drain(old, traffic)
        for pod in self.pods:
            pod.check()

    def versions(self) -> list[set[str]]:
        """The bundles that answer in each pod, asked a few times each."""
        found = []
        for pod in self.pods:
            with Recommender(pod.url("grpc"), timeout_s=5.0) as recommender:
                found.append({recommender.recommend([]).bundle_version for _ in range(5)})
        return found

    def _start(self, deployment: Manifest) -> Pod:
        self._started += 1
        pod = Pod(self._host, f"{self._host.name}-{self._started}", deployment["spec"]["template"])
        pod.wait_ready()
        self.ready_s.append(pod.ready_s)
        return pod

    def _drain(self, pod: Pod, traffic: Traffic) -> None:
        deadline_s = time.monotonic() + pod.grace_s
        self.pods.remove(pod)
        pod.pre_stop()
        pod.terminate()
        time.sleep(STALE_S)
        traffic.use(self._urls())
        if pod.wait_ended(deadline_s - time.monotonic()) == SIGKILLED:
            self.killed.append(pod.name)

    def _urls(self) -> list[str]:
        return [pod.url("grpc") for pod in self.pods]


def helm_test(host: Host, manifests: Sequence[Manifest], pods: Sequence[Pod]) -> bool | None:
    """Run the release's test pods, with the Services' names leading to the first of `pods`; None without such a pod."""
    services = {manifest["metadata"]["name"]: pods[0].ip for manifest in manifests if manifest["kind"] == "Service"}
    passed = None
    for manifest in manifests:
        if manifest["metadata"].get("annotations", {}).get("helm.sh/hook") == "test":
            name = f"{host.name}-test"
            container = f"{name}-{manifest['spec']['containers'][0]['name']}"
            host.play(name, manifest["spec"], services)
            passed = podman("wait", container) == "0" and passed is not False
            with suppress(PodError):
                print(podman("logs", container))
            host.remove(name)
    return passed


def only(manifests: Sequence[Manifest], kind: str) -> Manifest:
    """The one manifest of a kind. Raises ValueError when there is none, or more."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found
