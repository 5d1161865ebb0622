"""Builds, checks, serves and times a bundle with TensorRT-LLM, on a machine with a GPU; pass or fail for each step.

python -m genrec_builders.export.tensorrt_llm.verify BUNDLE DATA WORK
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.engines.base import Engine, InFlightEngine
from genrec.engines.tensorrt_llm.contract import RELEASE
from genrec.errors import DeadlineExceeded
from genrec.evaluation.metrics import likeness, metrics
from genrec.evaluation.ranker import Ranker, Ranking, require_catalog
from genrec.golden import check_drafts
from genrec.pipeline import Pipeline
from genrec.reporting.machine import provenance
from genrec.reporting.self_check import SelfCheck, StepFailed
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out
from genrec_builders.export.tensorrt_llm import api
from genrec_builders.export.tensorrt_llm.export import TensorRtLlmConfig, export_tensorrt_llm

CONCURRENCY = (1, 4, 16, 64)
HIT_TOLERANCE = 0.005  # of Hit@10 and NDCG@10 between half precision and float32, absolute
OVERLAP = 0.9  # of the ten best drafts, half precision against float32


@contextmanager
def engine_on(bundle: Bundle, **options: Any) -> Iterator[InFlightEngine]:
    """A TensorRT-LLM engine that ends with the block: two do not fit on one GPU."""
    engine = open_engine(bundle, "tensorrt_llm", **options)
    assert isinstance(engine, InFlightEngine)
    try:
        yield engine
    finally:
        engine.close()


def check_package() -> str:
    """The release that is installed, and a GPU."""
    import torch

    found = api.release_of(api.installed())
    if not torch.cuda.is_available():
        raise StepFailed(f"TensorRT-LLM {found} is there, but torch {torch.__version__} sees no GPU")
    note = "" if found == RELEASE else f"; this was written for {RELEASE}"
    return f"TensorRT-LLM {found}{note}, {torch.cuda.get_device_name()}"


def check_names() -> str:
    """Every name that is used of the package, in its source."""
    missing = [f for f in api.check(api.installed(), json.loads(api.LIST.read_text())) if f.problem]
    if missing:
        raise StepFailed("; ".join(f"{finding.name}: {finding.problem}" for finding in missing))
    return "every name of api.json is there"


def check_golden(engine: Engine, bundle: Bundle) -> str:
    """The bundle's own request, as every server checks it before it is ready."""
    check_drafts(bundle.golden, engine)
    return f"the bundle's golden request, scores within {engine.score_tolerance}"


def check_parity(ours: Engine, reference: Engine, bundle: Bundle, histories: list[np.ndarray], targets: Any) -> str:
    """Quality and the first ten drafts against the PyTorch engine in float32."""
    prompts = [bundle.layout.encode_history(history, bundle.catalog.sids) for history in histories[:200]]
    found = likeness(ours.draft(prompts), reference.draft(prompts))

    def ranked(engine: Engine) -> Ranking:
        return Ranker(Pipeline.open(bundle, engine), batch=64).rank(histories)

    a, b = (metrics(ranked(engine).rows, targets) for engine in (ours, reference))
    worst = max(abs(a[name] - b[name]) for name in ("hit@10", "ndcg@10"))
    said = (
        f"{found['overlap']:.1%} of the ten best drafts are the same, scores within {found['gap']:.3g}; "
        f"Hit@10 {a['hit@10']:.4f} and {b['hit@10']:.4f}, "
        f"NDCG@10 {a['ndcg@10']:.4f} and {b['ndcg@10']:.4f}, of {len(histories)} users"
    )
    if found["overlap"] < OVERLAP or worst > HIT_TOLERANCE:
        raise StepFailed(said)
    return said


def check_batches(engine: InFlightEngine, prompts: Sequence[np.ndarray]) -> str:
    """Requests in flight together answer as each one alone, the longest prompts and those of one item among them."""
    alone = [engine.submit(prompt).result(60) for prompt in prompts]
    together = [future.result(60) for future in [engine.submit(prompt) for prompt in prompts]]
    gap = max(float(np.abs(a.scores[:, :10] - b.scores[:, :10]).max()) for a, b in zip(alone, together, strict=True))
    if not gap <= engine.score_tolerance:
        raise StepFailed(f"scores differ by {gap:.3g} between alone and together")
    return f"{len(prompts)} requests, scores within {gap:.3g}"


def check_deadlines(engine: InFlightEngine, prompt: np.ndarray) -> str:
    """A late request fails alone, and leaves the engine in order."""
    late = engine.submit(prompt, deadline_ns=time.monotonic_ns() - 1)
    fine = engine.submit(prompt, deadline_ns=time.monotonic_ns() + 60_000_000_000)
    try:
        late.result(60)
    except DeadlineExceeded:
        fine.result(60)
        return "late requests are aborted, others answered"
    raise StepFailed("a request whose deadline had passed was answered")


def check_reuse(engine: InFlightEngine, prompts: Sequence[np.ndarray]) -> str:
    """With reuse on, prompts asked again answer as before, whatever of them is cached."""
    first, again = engine.draft(prompts), engine.draft(prompts)
    gap = float(np.abs(first.scores[:, :10] - again.scores[:, :10]).max())
    if not gap <= engine.score_tolerance:
        raise StepFailed(f"scores differ by {gap:.3g} once the prompts are cached")
    return f"{len(prompts)} prompts asked again, scores within {gap:.3g}"


def check_served(bundle: Bundle, offline: Engine, histories: list[np.ndarray], log: Path) -> str:
    """The ensemble on a real Triton recommends."""
    from genrec_client import Recommender, RecommendRequest

    ids = [item_id.decode() for item_id in bundle.catalog.item_ids.tolist()]
    requests = [RecommendRequest([ids[row] for row in history], allow_history=True) for history in histories]
    ranked = Ranker(Pipeline.open(bundle, offline)).rank(histories).rows
    with serve_bundle(bundle.path, Deployment(engine="tensorrt_llm", timeout_ms=60_000), log_path=log) as server:
        with Recommender(server.grpc_url, timeout_s=60.0) as client:
            answers = client.recommend_many(requests, concurrency=16, return_exceptions=False)
    shared = np.mean(
        [
            len({item.item_id for item in answer.items} & {ids[row] for row in rows if row >= 0}) / 10
            for answer, rows in zip(answers, ranked, strict=True)
        ]
    )
    said = f"{len(requests)} requests; {shared:.1%} of the items are those of the PyTorch engine; log in {log}"
    if shared < OVERLAP:
        raise StepFailed(said)
    return said


def benchmark(engine: InFlightEngine, prompts: Sequence[np.ndarray], seconds: float) -> list[dict[str, float]]:
    """Latencies in ms and requests per second, with so many requests in flight at a time."""
    rows = []
    for concurrency in CONCURRENCY:
        times: list[float] = []
        begun: dict[Any, float] = {}
        at, started = 0, time.perf_counter()
        while (now := time.perf_counter()) - started < seconds or begun:
            while len(begun) < concurrency and now - started < seconds:
                begun[engine.submit(prompts[at % len(prompts)])] = time.perf_counter()
                at += 1
            oldest = next(iter(begun))
            oldest.result(60)
            for done in [one for one in begun if one.done()]:
                times.append(1e3 * (time.perf_counter() - begun.pop(done)))
        took = time.perf_counter() - started
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
        rows.append({"concurrency": concurrency, "p50": p50, "p95": p95, "p99": p99, "per_second": len(times) / took})
    return rows


def main(
    bundle_path: Annotated[Path, typer.Argument(help="A bundle with a draft head.")],
    data: Annotated[Path, typer.Argument(help="The dataset that it was built from.")],
    work: Annotated[Path, typer.Argument(help="Folder for the exported bundle, logs and report.json.")],
    dtype: Annotated[str, typer.Option(help="Of the backbone.")] = "bfloat16",
    users: Annotated[int, typer.Option(min=10, help="Test users to rank.")] = 2000,
    seconds: Annotated[float, typer.Option(min=1, help="Of the benchmark, at each concurrency.")] = 10.0,
) -> None:
    """Run every step; exit status 1 if one fails."""
    checks = SelfCheck()
    work.mkdir(parents=True, exist_ok=True)
    exported = work / "bundle"
    if not checks.step("package", check_package):
        raise typer.Exit(1)
    checks.step("names", check_names)

    def build() -> str:
        return export_tensorrt_llm(bundle_path, exported, TensorRtLlmConfig(dtype=dtype)).bundle_version

    if not checks.step("build", build):
        raise typer.Exit(1)
    bundle, dataset = Bundle(exported), read_dataset(data)
    require_catalog(bundle, dataset.items.item_ids)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, users)
    prompts = [bundle.layout.encode_history(history, bundle.catalog.sids) for history in histories[:256]]
    reference = open_engine(bundle, "torch")

    def run_engine() -> str:
        with engine_on(bundle) as engine:
            checks.step("golden", lambda: check_golden(engine, bundle))
            checks.step("parity", lambda: check_parity(engine, reference, bundle, histories, targets))
            checks.step("batches", lambda: check_batches(engine, prompts))
            checks.step("deadlines", lambda: check_deadlines(engine, prompts[0]))
            rows = checks.measured["engine"] = benchmark(engine, prompts, seconds)
        for row in rows:
            print("            " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        return "started, ended, timed"

    def run_reuse() -> str:
        cache = {"enable_block_reuse": True, "enable_partial_reuse": True, "free_gpu_memory_fraction": 0.5}
        with engine_on(bundle, kv_cache_config=cache) as engine:
            return check_reuse(engine, prompts)

    checks.step("engine", run_engine)
    checks.step("reuse", run_reuse)
    checks.step("serve", lambda: check_served(bundle, reference, histories[:200], work / "triton.log"))
    checks.measured |= provenance()
    (work / "report.json").write_text(json.dumps({"steps": checks.steps, **checks.measured}, indent=2) + "\n")
    print(f"{'pass' if checks.passed else 'FAIL'}: report in {work / 'report.json'}")
    raise typer.Exit(not checks.passed)


if __name__ == "__main__":
    typer.run(main)
