"""What processes hold over time: memory, file handles, threads, shared memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

SHARED = Path("/dev/shm")
_MODELS = ("preprocessing", "backbone", "verifier", "knowledge")


@dataclass(frozen=True)
class Sample:
    """At `seconds` of a run, all processes of a server together. anonymous_mb: memory that no file stands behind, which
    leaves out what they map, and of_each by process; shared_mb, regions: of files in /dev/shm that they map."""

    seconds: float
    anonymous_mb: float
    shared_mb: float
    regions: int
    handles: int
    threads: int
    processes: int
    of_each: dict[str, float]


def processes_of(pid: int) -> dict[str, psutil.Process]:
    """The process and those that it began, as "serve", "triton", "haproxy", "follower" and the models' names."""
    found: dict[str, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found["serve"] = root
        for child in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found[_name_of(child)] = child
    return found


def _name_of(process: psutil.Process) -> str:
    words = process.cmdline()
    if process.name() in ("tritonserver", "haproxy"):
        return process.name().removesuffix("server")
    for model in _MODELS:
        if any(f"/{model}/" in word for word in words):
            return model
    return "follower" if "genrec.live.process" in words else f"{process.name()} {process.pid}"


def shared_files(process: psutil.Process) -> set[Path]:
    """Files in /dev/shm that the process has mapped."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    paths = (line.split(maxsplit=5)[-1].removesuffix(" (deleted)") for line in lines)
    return {Path(path) for path in paths if path.startswith(f"{SHARED}/")}


def sample(pid: int, seconds: float, seen: set[Path]) -> Sample:
    """What the processes that `pid` began hold now, itself included. seen: gets the files in /dev/shm that they map."""
    handles = threads = 0
    anonymous: dict[str, float] = {}
    regions: set[Path] = set()
    for name, process in processes_of(pid).items():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
            rolled = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            kib = next(int(line.split()[1]) for line in rolled.splitlines() if line.startswith("Anonymous:"))
            anonymous[name] = kib / 1024
            handles += process.num_fds()
            threads += process.num_threads()
            regions |= shared_files(process)
    seen |= regions
    shared = sum(path.stat().st_size for path in regions if path.exists())
    total = sum(anonymous.values())
    return Sample(seconds, total, shared / 2**20, len(regions), handles, threads, len(anonymous), anonymous)


@contextmanager
def watched(pids: Sequence[int], seen: set[Path], every_s: float = 10.0) -> Iterator[dict[int, list[Sample]]]:
    """Samples of each of `pids` with its processes while the block runs, `every_s` s apart; seen: as of `sample`."""
    samples: dict[int, list[Sample]] = {pid: [] for pid in pids}
    began, ends = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ends.wait(every_s):
            for pid in pids:
                samples[pid].append(sample(pid, time.monotonic() - began, seen))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ends.set()
        thread.join()


def slope(samples: list[Sample], name: str, after_s: float) -> float:
    """By how much a figure grows in ten minutes, by least squares of the samples after `after_s` seconds.

    Raises ValueError for fewer than three of them.
    """
    late = [one for one in samples if one.seconds >= after_s]
    if len(late) < 3:
        raise ValueError(f"{len(late)} samples after {after_s:.0f} s; at least 3 say how {name} grows: run longer")
    return float(np.polyfit([one.seconds for one in late], [getattr(one, name) for one in late], 1)[0] * 600)
