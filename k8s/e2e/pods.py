"""Pods of a Deployment on this machine: started by `podman kube play`, and the parts of a kubelet that podman lacks.

Podman ignores probes and preStop, and shares an emptyDir between all pods that have one of that name. So probes and
preStop are carried out here, and every volume becomes a folder of the host: an emptyDir one of its own (on tmpfs, if
its medium is Memory), a PersistentVolumeClaim the folder of that name among the claims.
"""

from __future__ import annotations

import copy
import http.client
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TMPFS = Path("/dev/shm")


class PodError(RuntimeError):
    """A pod did not do what its manifest promises; the message has the end of its log."""


def podman(*words: str | Path, stdin: str | None = None) -> str:
    """What a podman command prints. Raises PodError with its error output when it fails."""
    done = subprocess.run(["podman", *map(str, words)], input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise PodError(f"podman {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout.strip()


class Host:
    """Where pods run: a network of their own, the claims' folders, folders for emptyDirs. A context manager.

    name: of the network; the pods' names begin with it. claims: a folder with one folder for each
    PersistentVolumeClaim. scratch: folder for emptyDirs.

    Leaving the block removes its pods, network and emptyDirs, whatever happened.
    """

    def __init__(self, name: str, claims: Path, scratch: Path) -> None:
        self.name = name
        self.claims = claims
        self._empty_dirs = {"": scratch / name, "Memory": TMPFS / name}

    def __enter__(self) -> Host:
        podman("network", "create", "--internal", self.name)
        return self

    def __exit__(self, *_: object) -> None:
        for pod in podman("pod", "ls", "--quiet", "--filter", f"label=e2e={self.name}").split():
            with suppress(PodError):
                podman("pod", "rm", "--force", "--time", "0", pod)
        with suppress(PodError):
            podman("network", "rm", "--force", self.name)
        for folder in self._empty_dirs.values():
            shutil.rmtree(folder, ignore_errors=True)

    def play(self, name: str, template: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> None:
        """Start a pod like the pod spec `template`. aliases: addresses by host name, as Services have them."""
        spec: dict[str, Any] = copy.deepcopy(dict(template))
        spec["restartPolicy"] = "Never"  # a crash shall be seen, not mended
        spec["hostAliases"] = [{"ip": ip, "hostnames": [host]} for host, ip in (aliases or {}).items()]
        folders = {volume["name"]: self._folder(name, volume) for volume in spec.get("volumes", [])}
        spec["volumes"] = []
        for container in spec.get("initContainers", []) + spec["containers"]:
            # Podman would run the probe by curl inside the container, and take the ports of this machine for every pod.
            for unwanted in ("livenessProbe", "ports"):
                container.pop(unwanted, None)
            for mount in container.get("volumeMounts", []):
                folder = folders[mount["name"]] / mount.pop("subPath", "")
                mount["name"] = f"volume-{len(spec['volumes'])}"
                spec["volumes"].append({"name": mount["name"], "hostPath": {"path": str(folder)}})
        metadata = {"name": name, "labels": {"e2e": self.name}}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        podman("kube", "play", "--network", self.name, "-", stdin=yaml.safe_dump(manifest))

    def address(self, name: str) -> str:
        """The pod's IP address."""
        infra = podman("pod", "inspect", name, "--format", "{{.InfraContainerID}}")
        networks = json.loads(podman("inspect", infra))[0]["NetworkSettings"]["Networks"]
        return networks[self.name]["IPAddress"]

    def remove(self, name: str) -> None:
        """Remove a pod and its emptyDirs."""
        podman("pod", "rm", "--force", "--time", "0", name)
        for folder in self._empty_dirs.values():
            shutil.rmtree(folder / name, ignore_errors=True)

    def _folder(self, pod: str, volume: Mapping[str, Any]) -> Path:
        if "persistentVolumeClaim" in volume:
            return self.claims / volume["persistentVolumeClaim"]["claimName"]
        if "emptyDir" not in volume:
            raise PodError(f"volume {volume['name']} is neither an emptyDir nor a claim: {volume}")
        folder = self._empty_dirs[volume["emptyDir"].get("medium", "")] / pod / volume["name"]
        folder.mkdir(parents=True)
        folder.chmod(0o777)  # as the kubelet makes it
        return folder


@dataclass(frozen=True)
class Probe:
    """An httpGet probe with Kubernetes' defaults; times in seconds."""

    path: str
    port: int
    period_s: float
    timeout_s: float
    failures: int

    @classmethod
    def of(cls, container: Mapping[str, Any], kind: str) -> Probe:
        """The container's `kind`: startupProbe, readinessProbe or livenessProbe. Raises KeyError without httpGet."""
        probe = container[kind]
        port = probe["httpGet"]["port"]
        if isinstance(port, str):
            port = {named["name"]: named["containerPort"] for named in container["ports"]}[port]
        return cls(
            path=probe["httpGet"]["path"],
            port=port,
            period_s=probe.get("periodSeconds", 10),
            timeout_s=probe.get("timeoutSeconds", 1),
            failures=probe.get("failureThreshold", 3),
        )

    def succeeds(self, ip: str) -> bool:
        """Whether the pod at `ip` answers with a status from 200 to 399 in time."""
        connection = http.client.HTTPConnection(ip, self.port, timeout=self.timeout_s)
        try:
            connection.request("GET", self.path)
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Pod:
    """One replica: the pod of a Deployment's template on a host.

    name: the pod's. ip: its address. ready: whether the readiness probe says so now. ready_s: seconds from the start of
    the pod to ready; 0 before.
    """

    def __init__(self, host: Host, name: str, template: Mapping[str, Any]) -> None:
        self._host = host
        self._spec = template["spec"]
        self._container = self._spec["containers"][0]
        self._startup, self._readiness, self._liveness = (
            Probe.of(self._container, f"{kind}Probe") for kind in ("startup", "readiness", "liveness")
        )
        self._ended = threading.Event()
        self._failure = ""
        self.name = name
        self.ready = False
        self.ready_s = 0.0
        self._began_s = time.monotonic()
        host.play(name, self._spec)
        self.ip = host.address(name)
        self._exit = subprocess.Popen(["podman", "wait", self._container_name], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._watch, name=name, daemon=True).start()

    def url(self, port: str) -> str:
        """host:port of the container's port of that name."""
        ports = {named["name"]: named["containerPort"] for named in self._container["ports"]}
        return f"{self.ip}:{ports[port]}"

    def wait_ready(self) -> None:
        """Wait for the readiness probe. Raises PodError as `check` does."""
        while not self.ready:
            self.check()
            time.sleep(0.02)

    def check(self) -> None:
        """Raises PodError when the server has ended by itself, or a probe has given the pod up."""
        failure = self._failure or ("the server ended" if self._exit.poll() is not None else "")
        if failure:
            raise PodError(f"{self.name}: {failure}\n{self.log()}")

    def log(self, lines: int = 30) -> str:
        """The end of the container's log."""
        return subprocess.run(
            ["podman", "logs", "--tail", str(lines), self._container_name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout

    def pre_stop(self) -> None:
        """Carry out the manifest's preStop hook and wait for it: sleep or exec."""
        hook = self._container.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            podman("exec", self._container_name, *hook["exec"]["command"])
        elif hook:
            raise PodError(f"{self.name}: this preStop hook cannot be carried out here: {hook}")

    def terminate(self) -> None:
        """End the probes and send SIGTERM; does not wait."""
        self._ended.set()
        podman("kill", "--signal", "TERM", self._container_name)

    def wait_ended(self, grace_s: float) -> int:
        """Wait for the container's end, SIGKILL it after `grace_s`, and remove the pod; returns its exit status."""
        try:
            status, _ = self._exit.communicate(timeout=max(0.0, grace_s))
        except subprocess.TimeoutExpired:
            podman("kill", "--signal", "KILL", self._container_name)
            status, _ = self._exit.communicate()
        self._host.remove(self.name)
        return int(status)

    @property
    def grace_s(self) -> float:
        """terminationGracePeriodSeconds, which preStop is part of."""
        return self._spec.get("terminationGracePeriodSeconds", 30)

    @property
    def _container_name(self) -> str:
        return f"{self.name}-{self._container['name']}"

    def _watch(self) -> None:
        if not self._started():
            return
        readiness, liveness = self._readiness, self._liveness
        unready = dead = 0
        next_s = dict.fromkeys(("readiness", "liveness"), time.monotonic())
        while not self._ended.wait(max(0.0, min(next_s.values()) - time.monotonic())):
            if time.monotonic() >= next_s["readiness"]:
                next_s["readiness"] += readiness.period_s
                unready = 0 if readiness.succeeds(self.ip) else unready + 1
                self.ready = unready == 0 or (self.ready and unready < readiness.failures)
                self.ready_s = self.ready_s or (time.monotonic() - self._began_s if self.ready else 0.0)
            if time.monotonic() >= next_s["liveness"]:
                next_s["liveness"] += liveness.period_s
                dead = 0 if liveness.succeeds(self.ip) else dead + 1
                if dead >= liveness.failures:
                    self._failure = f"the liveness probe failed {dead} times"
                    return

    def _started(self) -> bool:
        for _ in range(self._startup.failures):
            if self._startup.succeeds(self.ip):
                return True
            if self._ended.wait(self._startup.period_s):
                return False
        self._failure = f"the startup probe failed {self._startup.failures} times"
        return False
