"""The scenario on a real cluster, with helm and kubectl: install, test, upgrade and roll back under load.

The load runs in a pod of its own, from the serving image, and asks the headless Service.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from k8s.e2e.changes import Answer, change

HERE = Path(__file__).parent
RELEASE = "genrec"
LOADER = "genrec-e2e-load"
TIMEOUT = "10m"
SETTLE_S = 15.0


def command(*words: str | Path) -> str:
    """What a command prints; CalledProcessError when it fails, with its error output on the terminal."""
    return subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True, check=True).stdout


def run(
    first: dict[str, Any],
    second: dict[str, Any],
    out: Path,
    rate: float,
    history: str,
    changes: int,
    change_every_s: float,
) -> dict[str, Any]:
    """Install with the values `first`, upgrade to `second` and roll back, under `rate` requests per second.

    If the values name a live catalogue, it is changed `changes` times first; a user of one item, `history`, shows it.
    Returns results as the emulation's, without what only one machine can tell. Removes the release at the end.
    """
    phases = {}
    changed: dict[str, Any] = {}
    catalog = first["catalog"]["location"]
    try:
        upgrade(first, out)
        tested = not subprocess.run(["helm", "test", RELEASE, "--logs", "--timeout", TIMEOUT]).returncode
        phases["steady"] = under_load(first, rate, lambda: time.sleep(60))
        if catalog:
            phases["changes of the catalogue"] = under_load(
                first, rate, lambda: changed.update(change(catalog, lambda: ask_all(history), changes, change_every_s))
            )
        phases["rollout of another bundle"] = under_load(first, rate, lambda: upgrade(second, out))
        phases["rollback"] = under_load(
            first, rate, lambda: command("helm", "rollback", RELEASE, "1", "--wait", "--timeout", TIMEOUT)
        )
    finally:
        command("helm", "uninstall", RELEASE, "--ignore-not-found", "--wait")
    return {"helm_test": tested, "load_per_s": rate, "changes": changed, "phases": phases}


def ask_all(history: str) -> list[Answer]:
    """What every pod recommends, asked from the pod of the load. The way there is part of the time that it takes."""
    source = (HERE / "changes.py").read_text()
    said = command("kubectl", "exec", LOADER, "--", "python", "-c", source, f"{RELEASE}-headless:8001", history)
    return [Answer(**answer) for answer in json.loads(said)]


def under_load(values: dict[str, Any], rate: float, work: Callable[[], object]) -> dict[str, Any]:
    """Do `work` while a pod in the cluster asks `rate` times per second; returns `load.summary` of the requests."""
    image = f"{values['image']['repository']}:{values['image']['tag']}"
    source = (HERE / "load.py").read_text()
    url = f"dns:///{RELEASE}-headless:8001"
    began_s = time.monotonic()
    try:
        command(
            "kubectl", "run", LOADER, f"--image={image}", "--restart=Never", "--command", "--",
            "python", "-c", source, url, str(rate),
        )  # fmt: skip
        command("kubectl", "wait", "--for=condition=Ready", f"pod/{LOADER}", f"--timeout={TIMEOUT}")
        time.sleep(SETTLE_S)
        work()
        time.sleep(SETTLE_S)
        command("kubectl", "exec", LOADER, "--", "sh", "-c", "kill -TERM 1")
        command("kubectl", "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{LOADER}", "--timeout=1m")
        return {"seconds": time.monotonic() - began_s, **json.loads(command("kubectl", "logs", LOADER))}
    finally:
        command("kubectl", "delete", "pod", LOADER, "--ignore-not-found", "--wait")


def upgrade(values: dict[str, Any], out: Path) -> None:
    """Install or upgrade the release and wait until its pods are ready."""
    path = out / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    command("helm", "upgrade", "--install", RELEASE, HERE.parent / "chart", "-f", path, "--wait", "--timeout", TIMEOUT)
