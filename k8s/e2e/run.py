"""Install, test, roll over under load, change the bundle and roll back: the chart end to end.

python -m k8s.e2e.run build/shop-bundle, in the repository's root. Uses the cluster that KUBECONFIG names; without
KUBECONFIG it emulates one with podman on this machine.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.reporting.machine import this_commit, this_machine
from k8s.e2e import cluster
from k8s.e2e.emulation import EmulatedDeployment, helm_test
from k8s.e2e.load import Traffic, saturation, summary
from k8s.e2e.pods import Host, PodError, podman
from k8s.rendering import render

HERE = Path(__file__).parent
IMAGE_MB, READY_S, RETRIES_SHARE, P99_RATIO = 600, 15, 0.01, 2
WARM_UP_S = 5.0
console = Console(soft_wrap=True)


def emulate(
    bundle: Bundle,
    image: str,
    values: dict[str, Any],
    out: Path,
    *,
    steady_s: float,
    saturation_s: float,
    load_share: float,
    concurrency: int,
) -> dict[str, Any]:
    """The whole scenario on this machine; times in seconds, latency in ms.

    Raises PodError when a pod does not do what its manifest promises.
    """
    bundles = {name: out / "claims" / "bundles" / name for name in ("a", "b")}
    prepare_bundles(bundle, bundles)

    def manifests(name: str) -> list[dict[str, Any]]:
        return render(chart_values(image, f"pvc://bundles/{name}", values))

    histories = random_histories(bundle)
    with Host(f"genrec-e2e-{os.getpid()}", out / "claims", out / "scratch") as host:
        deployment = EmulatedDeployment(host)
        console.print("install")
        deployment.install(manifests("a"))
        tested = helm_test(host, manifests("a"), deployment.pods)
        urls = [pod.url("grpc") for pod in deployment.pods]
        saturation(urls, histories, WARM_UP_S, concurrency)
        most = saturation(urls, histories, saturation_s, concurrency)
        phases: dict[str, Any] = {}
        with Traffic(histories, load_share * most) as traffic:
            traffic.use(urls)
            time.sleep(WARM_UP_S)

            def phase(name: str, work: Callable[[], None]) -> None:
                console.print(name)
                began_s = time.monotonic()
                work()
                ended_s = time.monotonic()
                time.sleep(2.0)  # the last ones end
                phases[name] = {"seconds": ended_s - began_s, **summary(traffic.between(began_s, ended_s))}

            phase("steady", lambda: time.sleep(steady_s))
            phase("rollout of the same bundle", lambda: deployment.roll_over(manifests("a"), traffic))
            phase("rollout of another bundle", lambda: deployment.roll_over(manifests("b"), traffic))
            changed = deployment.versions()
            phase("rollback", lambda: deployment.roll_over(manifests("a"), traffic))
            restored = deployment.versions()
    version = {name: Bundle(path).manifest.bundle_version for name, path in bundles.items()}
    return {
        "image_mb": int(podman("image", "inspect", image, "--format", "{{.Size}}")) / 1e6,
        "ready_s": deployment.ready_s,
        "helm_test": tested,
        "killed": deployment.killed,
        "one_bundle_each": changed == [{version["b"]}] * len(changed) and restored == [{version["a"]}] * len(restored),
        "saturation_per_s": most,
        "load_per_s": load_share * most,
        "phases": phases,
    }


def prepare_bundles(bundle: Bundle, paths: dict[str, Path]) -> None:
    """Put `bundle` at paths["a"], and the same one with one beam more at paths["b"]; replaces what is there."""
    for path in paths.values():
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(bundle.path, paths["a"])
    genrec = Path(sys.executable).with_name("genrec")
    width = bundle.manifest.beam_width + 1
    subprocess.run([genrec, "export", bundle.path, paths["b"], "--beam-width", str(width)], check=True)
    for path in paths["a"].parent.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the server is another user


def chart_values(image: str, location: str, values: dict[str, Any]) -> dict[str, Any]:
    """The chart's values for an image (repository:tag) and a bundle's location."""
    repository, _, tag = image.rpartition(":")
    return values | {"image": {"repository": repository, "tag": tag}, "bundle": {"location": location}}


def random_histories(bundle: Bundle, count: int = 1000, seed: int = 0) -> list[list[bytes]]:
    """Item ids of users that do not exist, 1 to as many as the bundle's prompt shows each."""
    draw = random.Random(seed)
    items = list(bundle.catalog.item_ids)
    longest = bundle.manifest.prompt.max_history
    return [draw.choices(items, k=draw.randint(1, longest)) for _ in range(count)]


def failures(results: dict[str, Any]) -> list[str]:
    """The requirements that the results do not meet, each as a sentence; [] if all are met."""
    found = []

    def require(met: bool, sentence: str) -> None:
        if not met:
            found.append(sentence)

    require(results.get("image_mb", 0) <= IMAGE_MB, f"the image is larger than {IMAGE_MB} MB")
    require(max(results.get("ready_s", [0])) <= READY_S, f"a pod took more than {READY_S} s to be ready")
    require(results["helm_test"] is not False, "helm test failed")
    require(not results.get("killed"), f"did not end within the grace period: {results.get('killed')}")
    require(results.get("one_bundle_each", True), "a pod answers from another bundle than its own")
    steady = results["phases"].get("steady")
    for name, phase in results["phases"].items():
        require(phase["lost"] == 0, f"{name}: {phase['lost']} requests lost: {phase['errors']}")
        require(phase["retries_share"] <= RETRIES_SHARE, f"{name}: {phase['retries_share']:.2%} retries")
        if steady:
            phase["p99_ratio"] = phase["p99_ms"] / steady["p99_ms"]
            require(phase["p99_ratio"] <= P99_RATIO, f"{name}: p99 is {phase['p99_ratio']:.1f} times the steady one")
    return found


def show(results: dict[str, Any]) -> None:
    """Print the phases as a table, and the rest below."""
    table = Table("phase", "s", "requests", "lost", "retries", "p50 ms", "p95 ms", "p99 ms", "p99 ratio")
    for name, phase in results["phases"].items():
        figures = (f"{phase[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        counts = (str(phase[key]) for key in ("requests", "lost", "retries"))
        table.add_row(name, f"{phase['seconds']:.0f}", *counts, *figures, f"{phase.get('p99_ratio', 1):.2f}")
    console.print(table)
    console.print({key: value for key, value in results.items() if key != "phases"})


def main(
    bundle: Annotated[Path, typer.Argument(help="The bundle to serve.")],
    image: Annotated[str, typer.Option(help="repository:tag of the serving image.")] = "localhost/genrec:dev",
    values: Annotated[Path, typer.Option(help="The chart's values.")] = HERE / "values.yaml",
    out: Annotated[Path, typer.Option(help="Folder of results.json.")] = Path("build/k8s-e2e"),
    steady_s: Annotated[float, typer.Option(help="Seconds of load before the first rollout.")] = 60.0,
    saturation_s: Annotated[float, typer.Option(help="Seconds for measuring saturation.")] = 10.0,
    load_share: Annotated[float, typer.Option(help="Load as a share of saturation.")] = 0.5,
    concurrency: Annotated[int, typer.Option(help="Requests under way while saturation is measured.")] = 32,
    locations: Annotated[
        str,
        typer.Option(help="With KUBECONFIG: the chart's bundle.location of two bundles, comma between."),
    ] = "",
    rate: Annotated[float, typer.Option(help="With KUBECONFIG: requests per second.")] = 50.0,
) -> None:
    """Run the scenario, print and write what was measured; exit status 1 when a requirement is not met."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the pods are removed
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load(values.read_text())
    if "KUBECONFIG" in os.environ:
        first, _, second = locations.partition(",")
        if not second:
            raise typer.BadParameter("KUBECONFIG is set: --locations names two bundles that the cluster can reach")
        console.print(f"on the cluster of {os.environ['KUBECONFIG']}")
        installed, upgraded = (chart_values(image, location, settings) for location in (first, second))
        results = cluster.run(installed, upgraded, out, rate)
    else:
        console.print("no KUBECONFIG: emulating a cluster on this machine with podman")
        os.environ.setdefault("CONTAINERS_CONF", str(HERE / "containers.conf"))
        results = emulate(
            Bundle(bundle),
            image,
            settings,
            out,
            steady_s=steady_s,
            saturation_s=saturation_s,
            load_share=load_share,
            concurrency=concurrency,
        )
    missed = failures(results)
    results |= {
        "emulated": "KUBECONFIG" not in os.environ,
        "missed": missed,
        "commit": this_commit(),
        "machine": this_machine().model_dump(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    show(results)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    raise typer.Exit(1 if missed else 0)


if __name__ == "__main__":
    try:
        typer.run(main)
    except PodError as error:
        sys.exit(f"error: {error}")
