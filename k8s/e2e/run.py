"""Install, test, change the catalogue, roll over under load, change the bundle, roll back: the chart end to end.

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
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from genrec.bundle import Bundle
from genrec.reporting.machine import this_commit, this_machine
from genrec_client import Recommender
from k8s.e2e import cluster
from k8s.e2e.changes import ask, change
from k8s.e2e.emulation import EmulatedDeployment, helm_test
from k8s.e2e.load import Traffic, saturation, summary
from k8s.e2e.pods import Host, PodError, podman
from k8s.rendering import merged, render

HERE = Path(__file__).parent
# The extra `catalog` is 265 MB of the image: deltalake brings its own query engine, and pyarrow its C++ libraries.
# OpenVINO is 105.
IMAGE_MB, READY_S, RETRIES_SHARE, P99_RATIO = 900, 15, 0.01, 2
SHOWN_P50_S, SHOWN_MOST_S = 1, 5
CHANGE_EVERY_S = 2.0
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
    changes: int,
) -> dict[str, Any]:
    """The whole scenario on this machine; times in seconds, latency in ms.

    Raises PodError when a pod does not do what its manifest promises.
    """
    bundles = {name: out / "claims" / "bundles" / name for name in ("a", "b")}
    prepare_bundles(bundle, bundles)
    catalog = prepare_catalog(bundle, out / "claims" / "catalogues" / "live")

    def manifests(name: str) -> list[dict[str, Any]]:
        return render(chart_values(image, f"pvc://bundles/{name}", "pvc://catalogues/live", values))

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
        store_away: dict[str, bool] = {}
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
            with ExitStack() as clients:
                pods = [clients.enter_context(Recommender(url, timeout_s=5.0)) for url in urls]
                history = [histories[0][0].decode()]
                changed_catalog: dict[str, Any] = {}

                def change_catalog() -> None:
                    made = change(str(catalog), lambda: [ask(pod, history) for pod in pods], changes, CHANGE_EVERY_S)
                    changed_catalog.update(made)

                phase("changes of the catalogue", change_catalog)
            phase("store away and back", lambda: store_away.update(take_away(catalog, deployment)))
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
        "changes": changed_catalog,
        "store_away": store_away,
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


def prepare_catalog(bundle: Bundle, path: Path) -> Path:
    """Put a live catalogue of the bundle's items at `path`; replaces what is there."""
    shutil.rmtree(path, ignore_errors=True)
    genrec = Path(sys.executable).with_name("genrec")
    subprocess.run([genrec, "catalog", "init", bundle.path, path], check=True)
    return path


def take_away(catalog: Path, deployment: EmulatedDeployment) -> dict[str, bool]:
    """Hide the store until no pod is ready any more, and put it back; returns whether readiness went and came back."""
    log = catalog / "_delta_log"
    hidden = log.rename(catalog / "away")
    try:
        not_ready = comes_true(lambda: not any(pod.ready for pod in deployment.pods))
    finally:
        hidden.rename(log)
    return {"not_ready": not_ready, "ready_again": comes_true(lambda: all(pod.ready for pod in deployment.pods))}


def comes_true(holds: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    """Wait until `holds`; returns whether it did in time."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def chart_values(image: str, bundle: str, catalog: str, values: dict[str, Any]) -> dict[str, Any]:
    """The chart's values for an image (repository:tag), and the locations of a bundle and of a live catalogue."""
    repository, _, tag = image.rpartition(":")
    chosen = {
        "image": {"repository": repository, "tag": tag},
        "bundle": {"location": bundle},
        "catalog": {"location": catalog},
    }
    return merged(values, chosen)


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
    if changes := results.get("changes"):
        shown = f"{changes['shown_p50_s']:.2f} s (p50), {changes['shown_most_s']:.2f} s (most)"
        in_time = changes["shown_p50_s"] <= SHOWN_P50_S and changes["shown_most_s"] <= SHOWN_MOST_S
        require(in_time, f"a change of the catalogue shows after {shown}, not {SHOWN_P50_S} s and {SHOWN_MOST_S} s")
        require(not changes["wrong_answers"], f"{changes['wrong_answers']} answers do not hold what their version does")
    require(results.get("store_away", {}).get("not_ready", True), "pods stay ready however old their catalogue is")
    require(results.get("store_away", {}).get("ready_again", True), "pods are not ready again when the store is back")
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
    changes: Annotated[int, typer.Option(help="Changes of the live catalogue, one every two seconds.")] = 30,
    locations: Annotated[
        str,
        typer.Option(help="With KUBECONFIG: the chart's bundle.location of two bundles, comma between."),
    ] = "",
    catalog: Annotated[
        str,
        typer.Option(
            help="With KUBECONFIG: a live catalogue of the bundle's items (`genrec catalog init`), which the cluster "
            "reads and this machine may change. None: the bundle's own is served."
        ),
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
        installed, upgraded = (chart_values(image, location, catalog, settings) for location in (first, second))
        history = random_histories(Bundle(bundle), 1)[0][0].decode()
        results = cluster.run(installed, upgraded, out, rate, history, changes, CHANGE_EVERY_S)
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
            changes=changes,
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
