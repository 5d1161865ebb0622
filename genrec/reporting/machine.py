"""Where and from what a measurement was made: every report says it in the same words."""

from __future__ import annotations

import datetime
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino")


class Section(BaseModel):
    """A part of a report's JSON: read back strictly, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Section):
    """Where it ran. libraries: versions by name."""

    processor: str
    cores: int
    system: str
    python: str
    libraries: dict[str, str]


def provenance(**settings: object) -> dict[str, object]:
    """What every measurement carries: commit, machine, date, and its own settings; for JSON."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"commit": this_commit(), "machine": this_machine().model_dump(), "date": now, **settings}


def this_machine() -> Machine:
    """The machine that this process runs on; cores are those it may use."""
    return Machine(
        processor=processor_line("model name") or platform.processor() or "unknown",
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries=dict(_versions(_LIBRARIES)),
    )


def this_commit() -> str | None:
    """The commit of the working folder, "+" behind it for uncommitted changes; None outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def usable_cores() -> int:
    """Processors that this process may use: those that it may run on, and not more than a container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return cores


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and not more than a container's limit."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        return max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return free


def processor_line(name: str) -> str:
    """What the kernel says of the first processor under that name, such as "model name"; "" if nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
