"""Runs perf_analyzer, Triton's load generator, and reads what every single request took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from genrec.bundle import Bundle
from genrec.serving.repository import MODEL

INSTALLED = Path(__file__).resolve().parents[2] / ".perf-analyzer"  # `make perf-analyzer` puts it there
HOW_TO_INSTALL = "run `make perf-analyzer`, and on Debian or Ubuntu `apt-get install libb64-0d`"
WARM_UP = 0.1  # share of the first requests that is not counted: connections, caches, the batcher's first batches


class AnalyzerError(RuntimeError):
    """perf_analyzer is missing, or ended with an error; the message has its own words."""


@dataclass(frozen=True)
class Load:
    """What to send: `concurrency` requests under way at all times, or Poisson arrivals of `rate` per second."""

    requests: int
    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        return f"concurrency-{self.concurrency}" if self.rate is None else f"rate-{self.rate:.4g}"

    def flags(self) -> list[str]:
        if self.rate is None:
            return ["--concurrency-range", str(self.concurrency)]
        # Asynchronous, so that a slow answer holds no arrival back.
        return ["--async", "--request-rate-range", f"{self.rate:g}", "--request-distribution", "poisson"]


@dataclass(frozen=True)
class Answers:
    """Every request after the warm-up: sent_s, float64 [n], seconds after the first; latency_ms, float64 [n]."""

    sent_s: np.ndarray
    latency_ms: np.ndarray

    @property
    def throughput(self) -> float:
        """Answers per second, from the first request to the last answer."""
        return float(self.sent_s.size / (self.sent_s + self.latency_ms / 1e3).max())

    def percentile(self, *shares: float) -> list[float]:
        """Latencies in ms below which `shares` percent lie."""
        return [float(value) for value in np.percentile(self.latency_ms, shares)]


def write_requests(bundle: Bundle, histories: Sequence[np.ndarray], path: Path) -> None:
    """Write perf_analyzer's input file: one request per history (int32 catalogue rows, oldest first)."""
    ids = bundle.catalog.item_ids
    data = [{"history": {"content": [ids[row].decode() for row in rows], "shape": [len(rows)]}} for rows in histories]
    path.write_text(json.dumps({"data": data}))


def run_analyzer(url: str, requests: Path, load: Load, folder: Path) -> Answers:
    """Send `load` to the server at `url` (gRPC) with the requests of `write_requests`, in turn.

    folder: where perf_analyzer's own output is kept, made anew. Raises AnalyzerError; a failed request is one too.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    profile = folder / "profile.json"
    binary, environment = find_analyzer()
    command = [binary, "-m", MODEL, "-i", "grpc", "-u", url, "--input-data", requests, *load.flags()]
    command += ["--request-count", str(load.requests), "--profile-export-file", profile, "-f", folder / "summary.csv"]
    ended = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    output = ended.stdout + ended.stderr
    (folder / "output.txt").write_text(output)
    if ended.returncode or not profile.exists():
        raise AnalyzerError(f"perf_analyzer ended with status {ended.returncode}; {folder}: {output.strip()[-800:]}")
    answers = _read(profile)
    profile.unlink()  # tens of MB with every input and output; what matters of it is kept
    np.savetxt(folder / "requests.csv", np.column_stack([answers.sent_s, answers.latency_ms]), "%.6f", ",")
    return answers


def _read(profile: Path) -> Answers:
    found = json.loads(profile.read_text())["experiments"][0]["requests"]
    answered = [request for request in found if request["response_timestamps"]]
    if len(answered) < len(found):
        raise AnalyzerError(f"{profile}: {len(found) - len(answered)} of {len(found)} requests got no answer")
    sent = np.array([request["timestamp"] for request in answered], np.int64)
    took = np.array([request["response_timestamps"][-1] for request in answered], np.int64) - sent
    order = sent.argsort()[int(WARM_UP * sent.size) :]
    sent, took = sent[order], took[order]
    return Answers((sent - sent[0]) / 1e9, took / 1e6)


@cache
def find_analyzer() -> tuple[str, dict[str, str]]:
    """The binary and the environment that it runs in."""
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return on_path, dict(os.environ)
    binary = INSTALLED / "bin" / "perf_analyzer"
    if not binary.exists():
        raise AnalyzerError(f"no perf_analyzer on PATH or in {INSTALLED}; {HOW_TO_INSTALL}")
    libraries = [INSTALLED / "nvidia/cuda_runtime/lib", os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(str(path) for path in libraries if str(path))}
    binary.chmod(0o755)
    if subprocess.run([binary, "--version"], env=environment, capture_output=True).returncode:
        raise AnalyzerError(f"{binary} does not start; {HOW_TO_INSTALL}")
    return str(binary), environment
