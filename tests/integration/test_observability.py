"""What an operator sees of a server: metrics by a real Prometheus, traces by an OTLP receiver, logs of requests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from genrec import __version__
from genrec.bundle import Bundle
from genrec.cli.main import main
from genrec.live.init import init_catalog
from genrec.serving.front import Front, FrontError
from genrec.serving.repository import STEPS, Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec.serving.triton import TritonServer, trace_flags
from genrec.serving.triton.ports import choose_ports
from genrec_client import InvalidRequest, Recommender
from k8s.rendering import REQUIRED, merged, render
from tests.needs import missing
from tests.otlp import Received, attributes, otlp_receiver

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
PUBLISH_S = 0.5  # between two times that steps write their figures
HISTORY = ["history-that-nobody-may-see"]


@dataclass(frozen=True)
class Served:
    server: TritonServer
    front: Front
    received: Received
    log: Path

    def client(self, **options: Any) -> Recommender:
        return Recommender(self.front.grpc_url, timeout_s=30.0, **options)


@pytest.fixture(scope="module")
def served(bundle: Bundle, deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("observed")
    init_catalog(bundle, str(folder / "catalogue"))
    live = LiveCatalog(str(folder / "catalogue"), folder / "cache")
    with ExitStack() as running:
        received = running.enter_context(otlp_receiver())
        try:
            front = running.enter_context(Front("recommend", metrics_port=0, log_path=folder / "front.log"))
        except FrontError as error:
            missing(str(error))
        server = running.enter_context(
            serve_bundle(
                bundle.path,
                replace(deployment, log_requests="all"),
                live,
                sockets=front.sockets,
                log_path=folder / "log",
                extra_args=trace_flags(received.address),
                env={"OTEL_BSP_SCHEDULE_DELAY": "100"},
            )
        )
        yield Served(server, front, received, folder / "log")


def page_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def families(page: str) -> set[str]:
    """The metrics of a page, histograms by their names."""
    names = set(re.findall(r"^# TYPE (\w+) ", page, re.M))
    histograms = {name.removesuffix("_bucket") for name in names if name.endswith("_bucket")}
    return {name for name in names if name.rpartition("_")[0] not in histograms} | histograms


def documented() -> dict[str, set[str]]:
    """The tables' metrics by their section."""
    sections = re.split(r"^### ", PAGE.read_text().partition("\n## Traces\n")[0], flags=re.M)[1:]
    return {text.partition("\n")[0]: set(re.findall(r"^\| `(\w+)` \| \w+ \|", text, re.M)) for text in sections}


def test_the_page_lists_every_metric_of_a_server_and_no_other(served: Served) -> None:
    tables = documented()
    with served.client() as client:
        client.recommend(HISTORY)
    listed = set().union(*tables.values())
    shown = families(page_of(served.server.metrics_url))
    assert shown == listed - tables["With knowledge texts"] - tables["The front's"]
    assert tables["The front's"] <= families(page_of(served.front.metrics_url))


def test_the_doctor_finds_the_server_well_and_says_what_is_not(
    served: Served, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, dict[str, dict[str, str]]]:
        code = main(["doctor", *map(str, words), "--json"])
        found = json.loads(capsys.readouterr().out)
        return code, {one["name"]: one for one in found if one["subject"] == "server"}

    code, found = run(bundle.path, "--server", served.front.grpc_url, "--metrics", served.server.metrics_url)
    assert code == 0 and {one["verdict"] for one in found.values()} == {"ok"}
    assert found.keys() == {"ready", "answer", "bundle", "metrics", "versions"}
    assert f"server {__version__}" in found["versions"]["found"]
    code, found = run("--server", served.front.grpc_url, "--metrics", served.front.http_url.join(("http://", "/no")))
    assert code == 1 and found["metrics"]["verdict"] == "wrong" and found["answer"]["verdict"] == "ok"


class Prometheus:
    """A real one. configuration: its file's content; rules: of alerts."""

    def __init__(self, folder: Path, configuration: dict[str, Any], rules: dict[str, Any]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            missing("prometheus is not installed: it is in Debian's package prometheus")
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration | {"rule_files": ["rules.yaml"]}))
        port = choose_ports("127.0.0.1", {"web": 0})["web"]
        self.address = f"http://127.0.0.1:{port}"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def until(self, path: str, good: Callable[[Any], bool], **parameters: str) -> Any:
        """The answer, once it is good."""
        until, found = time.monotonic() + 20.0, None
        while time.monotonic() < until:
            try:
                found = self.ask(path, **parameters)
                if good(found):
                    return found
            except OSError:
                assert self._process.poll() is None, "prometheus ended"
            time.sleep(0.1)
        raise AssertionError(f"{path} {parameters}: {found}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()


@pytest.fixture
def prometheus(served: Served, tmp_path: Path) -> Iterator[Prometheus]:
    pages = {"server": served.server.metrics_url, "front": served.front.metrics_url}
    labels = {"namespace": "default", "pod": "genrec-7c9-a1"}
    scraped = [
        {
            "job_name": name,
            "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc], "labels": labels}],
        }
        for name, url in pages.items()
    ]
    chart = render(merged(REQUIRED, {"prometheusRule": {"enabled": True}, "catalog": {"location": "pvc://c"}}))
    rules = next(manifest["spec"] for manifest in chart if manifest["kind"] == "PrometheusRule")
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    running = Prometheus(tmp_path, {"global": often, "scrape_configs": scraped}, rules)
    yield running
    running.close()


def test_prometheus_scrapes_both_pages_and_computes_quantiles_and_alerts(
    served: Served, prometheus: Prometheus
) -> None:
    up = prometheus.until("query", lambda found: len(found["result"]) == 2, query="up == 1")
    assert {one["metric"]["job"] for one in up["result"]} == {"server", "front"}
    took: list[float] = []
    with served.client() as client:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            took.append(client.recommend(HISTORY).latency_ms)

    def quantile(name: str, by: str = "le", count: int = 1) -> dict[str, float]:
        query = f"histogram_quantile(0.5, sum by ({by}) (rate({name}_bucket[10s]))) * 1000"

        def numbers(found: Any) -> bool:
            return len(found["result"]) == count and all(one["value"][1] != "NaN" for one in found["result"])

        answer = prometheus.until("query", numbers, query=query)
        return {one["metric"].get("step", ""): float(one["value"][1]) for one in answer["result"]}

    whole = quantile("genrec_request_seconds")[""]
    assert 0.1 < whole < sorted(took)[len(took) // 2]
    steps = quantile("genrec_step_compute_seconds", "le, step", 3)
    assert steps.keys() == set(STEPS) and all(0 < ms < 3 * whole for ms in steps.values())
    assert quantile("genrec_step_queue_seconds", "le, step", 2).keys() == {"backbone", "verifier"}
    passed = 'sum(increase(haproxy_frontend_http_requests_total{proxy="grpc"}[10s]))'
    prometheus.until(
        "query", lambda found: bool(found["result"]) and float(found["result"][0]["value"][1]) > 1, query=passed
    )

    def evaluated(found: Any) -> bool:
        rules = {rule["name"]: rule for group in found["groups"] for rule in group["rules"]}
        sound = len(rules) > 8 and all(rule["health"] == "ok" for rule in rules.values())
        # Nobody knows the history, so popularity fills every answer: that is what an alert is for.
        return sound and rules["GenrecFallbackRising"]["state"] == "pending"

    prometheus.until("rules", evaluated)


def spent(served: Served) -> tuple[int, float]:
    """Requests in `genrec_request_seconds`, and their seconds together."""
    page = page_of(served.server.metrics_url)
    found = dict(re.findall(r"^genrec_request_seconds_(sum|count){[^}]*} (\S+)$", page, re.M))
    return int(float(found["count"])), float(found["sum"])


def asked_over_grpc(served: Served) -> None:
    with served.client() as client:
        client.recommend(HISTORY)


def asked_over_http(served: Served) -> None:
    history = {"name": "history", "datatype": "BYTES", "shape": [1, 1], "data": HISTORY}
    body = json.dumps({"inputs": [history]}).encode()
    forged = {"genrec-arrived": "1"}
    with urllib.request.urlopen(
        urllib.request.Request(f"http://{served.front.http_url}/v2/models/recommend/infer", body, forged), timeout=30
    ) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("ask", [asked_over_grpc, asked_over_http])
def test_a_requests_time_begins_where_the_front_has_it(served: Served, ask: Callable[[Served], None]) -> None:
    ask(served)
    time.sleep(2 * PUBLISH_S)
    count, seconds = spent(served)
    assert served.server.pid is not None
    os.kill(served.server.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as asker:
            asked = asker.submit(ask, served)
            time.sleep(0.8)
            os.kill(served.server.pid, signal.SIGCONT)
            asked.result()
    finally:
        os.kill(served.server.pid, signal.SIGCONT)
    time.sleep(2 * PUBLISH_S)
    counted, more = spent(served)
    assert counted == count + 1
    assert 0.7 < more - seconds < 10  # it reached the front at the latest 0.1 s after it was sent


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> trace.Tracer:
    """Of an application that traces everything."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)  # the global one can be set once only
    return provider.get_tracer("application")


def complete(found: list[Any]) -> bool:
    return {*STEPS, "recommend"} <= {span.name for span in found} and sum(s.name == "compute" for s in found) == 3


def test_a_call_is_one_trace_from_the_caller_to_the_verifier(served: Served, tracer: trace.Tracer) -> None:
    with tracer.start_as_current_span("shop page") as page, served.client(tracing=True) as client:
        answer = client.recommend(HISTORY, exclude=["excluded-that-nobody-may-see"], request_id="visit-4711")
    assert answer.request_id == "visit-4711"
    found = served.received.of_trace(page.get_span_context().trace_id, complete)
    by_id = {span.span_id: span for span in found}
    by_name = {span.name: span for span in found}
    root = next(span for span in found if span.parent_span_id not in by_id)
    # The client's span is a child of the page's, and the server's of the client's.
    assert root.parent_span_id not in (b"", page.get_span_context().span_id.to_bytes(8, "big"))
    whole = by_name["recommend"]
    assert whole.parent_span_id == root.span_id
    times = [(by_name[step].start_time_unix_nano, by_name[step].end_time_unix_nano) for step in STEPS]
    for step, (start, end) in zip(STEPS, times, strict=True):
        assert by_name[step].parent_span_id == whole.span_id
        assert attributes(by_name[step])["triton.request_id"] == "visit-4711"
        (compute,) = (span for span in found if span.parent_span_id == by_name[step].span_id)
        assert start <= compute.start_time_unix_nano < compute.end_time_unix_nano <= end
        assert whole.start_time_unix_nano <= start < end <= root.end_time_unix_nano
    assert times == sorted(times)
    assert served.received.services == {"genrec"} and not served.received.errors
    assert not any(b"nobody-may-see" in body for body in served.received.bodies)


def test_what_the_caller_does_not_trace_is_not_traced(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    not_sampled = ("traceparent", f"00-{0xABC:032x}-{0xDEF:016x}-00")
    sampled = ("traceparent", f"00-{0xABD:032x}-{0xDEF:016x}-01")
    for options in ({"tracing": True}, {}, {"metadata": [not_sampled]}, {"metadata": [sampled]}):
        with served.client(**options) as client:
            client.recommend([], request_id=f"quiet-{'metadata' in options and sampled in options['metadata']}")
    served.received.of_trace(0xABD, complete)
    quiet = {attributes(span).get("triton.request_id") for span in served.received.spans}
    assert "quiet-True" in quiet and "quiet-False" not in quiet


def test_the_log_has_a_request_in_every_step_by_its_id_and_nothing_of_what_it_holds(served: Served) -> None:
    with served.client() as client:
        answer = client.recommend(HISTORY)
        with pytest.raises(InvalidRequest) as refusal:
            client.recommend(HISTORY, top_k=99_999, request_id="asks-for-too-much")
    assert refusal.value.request_id == "asks-for-too-much"

    def lines_of(request_id: str, count: int) -> list[dict[str, Any]]:
        until = time.monotonic() + 5.0
        while True:
            lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith('{"time": ')]
            found = [line for line in lines if line["request_id"] == request_id]
            if len(found) == count:
                return found
            assert time.monotonic() < until, found
            time.sleep(0.05)

    answered = lines_of(answer.request_id, len(STEPS))
    assert [line["source"] for line in answered] == [*STEPS]
    assert all(line["outcome"] == "answered" and line["ms"] > 0 and line["batch"] == 1 for line in answered)
    (refused,) = lines_of("asks-for-too-much", 1)
    told = {"outcome": "refused", "status": "INVALID_ARGUMENT", "reason": "invalid", "input": "top_k"}
    assert told.items() <= refused.items() and "message" not in refused
    assert "nobody-may-see" not in served.log.read_text()
