"""Whether a server can run on this machine, and how well."""

from __future__ import annotations

import os
import platform
import resource
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from genrec.doctor.finding import Finding, judged
from genrec.engines import ENGINES
from genrec.reporting.machine import available_memory, processor_line, usable_cores
from genrec.serving.front import FrontError, find_haproxy
from genrec.serving.triton import TritonNotFoundError, find_triton, prepare_backends

SERVER_BYTES = 512 << 20  # Triton and three Python processes, without a bundle
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
_LEAST_SHARED, _LEAST_SCRATCH, _LEAST_FILES, _LEAST_CORES = 65 << 20, 256 << 20, 1024, 2
_finding = partial(judged, "machine")


def machine_findings(shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """What was found. shared: where Triton's shared memory lies."""
    yield _python()
    yield from _triton()
    yield _front()
    yield from _engines()
    yield _cores()
    yield _memory()
    yield _room(
        "shared memory", shared, _LEAST_SHARED, "give the container a larger /dev/shm (the chart: sharedMemory)"
    )
    yield _room("scratch", Path(tempfile.gettempdir()), _LEAST_SCRATCH, "free some, or set TMPDIR to a larger volume")
    yield _files()


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _python() -> Finding:
    return _finding("python", f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}")


def _triton() -> Iterator[Finding]:
    try:
        install = find_triton()
        with tempfile.TemporaryDirectory() as scratch:
            prepare_backends(install, scratch)
    except TritonNotFoundError as error:
        yield _finding("triton", str(error), wrong="install Triton with a Python backend for this Python")
        return
    yield _finding("triton", f"{install.version or 'a version that it does not tell'}, {install.binary}")


def _front() -> Finding:
    try:
        return _finding("front", f"HAProxy, {find_haproxy()}")
    except FrontError as error:
        return _finding("front", str(error), warning="without it, serve on loopback or to clients that you trust only")


def _engines() -> Iterator[Finding]:
    """Those that run on processors. What they need is installed, and what the processor brings."""
    flags = processor_line("flags").split()
    brings = [name for name in _FLAGS if name in flags]
    name = processor_line("model name") or "a processor without a name"
    yield _finding(
        "processor",
        f"{name}: {', '.join(brings) or 'none of ' + ', '.join(_FLAGS)}",
        warning="" if "avx2" in flags else "expect it to be slow: engines are made for AVX2 and more",
    )
    needed = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
    installed = [engine for engine in ENGINES if find_spec(needed.get(engine, engine)) is not None]
    yield _finding(
        "engines",
        f"installed: {', '.join(installed) or 'none'}",
        wrong="" if installed else "pip install 'genrec-triton[serve]' brings ONNX Runtime",
    )
    if "onnx" in installed:
        from genrec.engines.onnx import multiplies_int8

        yield _finding(
            "onnx", "computes in f32, and in int8" if multiplies_int8() else "computes in f32; int8 needs VNNI"
        )
    if "openvino" in installed:
        from genrec.engines.openvino import precision_here, runs_here

        if runs_here():
            bf16 = precision_here() == "bf16"
            fast = "computes in bf16 here: often the fastest, `genrec tune` measures it"
            yield _finding("openvino", fast if bf16 else "runs here, in f32")
        else:
            found = "does not run here: the processor has no AVX-512, or ONEDNN_MAX_CPU_ISA forbids it"
            yield _finding("openvino", found, warning="use --engine onnx")


def _cores() -> Finding:
    machine, own = os.cpu_count() or 1, usable_cores()
    return _finding(
        "cores",
        f"{own} usable of {machine}" + ("" if own == machine else ", by affinity or a container's quota"),
        warning="" if own >= _LEAST_CORES else "give it two: the steps take turns on what there is",
    )


def _memory() -> Finding:
    free = available_memory()
    return _finding(
        "memory",
        f"{mib(free)} available",
        wrong="" if free > SERVER_BYTES else f"a server takes {mib(SERVER_BYTES)} beside its bundle: give it more",
    )


def _room(name: str, folder: Path, least: int, todo: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
        found = os.statvfs(folder)
    except OSError as error:
        return _finding(
            name, f"{folder}: {error.strerror or error}", wrong=f"make {folder} a folder that can be written"
        )
    free = found.f_bavail * found.f_frsize
    return _finding(
        name,
        f"{folder}: {mib(free)} free of {mib(found.f_blocks * found.f_frsize)}",
        warning="" if free >= least else f"under load {mib(least)} are too few: {todo}",
    )


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    todo = f"raise the limit of open files to {_LEAST_FILES} or more (ulimit -n): each connection takes one"
    return _finding("files", f"{soft} may be open, {hard} at most", warning="" if soft >= _LEAST_FILES else todo)
