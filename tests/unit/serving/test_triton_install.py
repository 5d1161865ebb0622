"""Finding a Triton server and the stub that fits the interpreter; what of a log is shown. Nothing is started."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from genrec.serving.triton import (
    STUB_NAME,
    TritonInstall,
    TritonNotFoundError,
    error_lines,
    find_triton,
    prepare_backends,
)
from genrec.serving.triton import install as triton_install


def test_no_server_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(triton_install, "DEFAULT_PREFIX", tmp_path)
    monkeypatch.setattr(triton_install, "WHEEL", "no-such-wheel")
    with pytest.raises(TritonNotFoundError, match=r"pip install genrec-triton\[triton\]"):
        find_triton()


def test_an_installed_server_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python_backend = tmp_path / "backends" / "python"
    for folder in (tmp_path / "bin", tmp_path / "lib", python_backend):
        folder.mkdir(parents=True)
    binary = tmp_path / "bin" / "tritonserver"
    binary.touch(mode=0o755)
    (tmp_path / "TRITON_VERSION").write_text("2.99.0\n")
    (python_backend / "libtriton_python.so").touch()
    stub = python_backend / STUB_NAME
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    install = find_triton()
    assert install == TritonInstall(binary, (tmp_path / "lib",), tmp_path / "backends", None, "2.99.0")
    stub.write_bytes(f"\0libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0\0".encode())
    assert prepare_backends(install, tmp_path / "unused") == tmp_path / "backends"
    assert not (tmp_path / "unused").exists()
    stub.write_bytes(b"\0libpython3.6m.so\0libpython3.6.so.1.0\0")
    with pytest.raises(TritonNotFoundError, match=r"built for Python 3\.6"):
        prepare_backends(install, tmp_path / "unused")


def test_a_wheel_without_a_stub_for_this_python(tmp_path: Path) -> None:
    backend, stubs = tmp_path / "backends" / "python", tmp_path / "stubs"
    backend.mkdir(parents=True)
    (backend / "libtriton_python.so").touch()
    for version in ("3.6", "3.7"):
        (stubs / version).mkdir(parents=True)
        (stubs / version / STUB_NAME).touch()
    install = TritonInstall(tmp_path / "tritonserver", (), tmp_path / "backends", stubs, "wheel 1")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(TritonNotFoundError, match=f"has no stub for Python {running}; it has 3.6, 3.7"):
        prepare_backends(install, tmp_path / "target")


def test_error_lines() -> None:
    log = textwrap.dedent(
        r"""
        I1120 19:46:15.133917 6238 model_lifecycle.cc:472] "loading: bad:1"
        E1120 19:46:11.718465 6123 server.cc:241] "CudaDriverHelper has not been initialized."
        E1120 19:46:15.503476 6238 backend_model.cc:692] "failed: \"x\"\n\nAt:\n  model.py(3): initialize\n"
        E1120 19:46:15.503563 6238 model_lifecycle.cc:642] "failed: \"x\"\n\nAt:\n  model.py(3): initialize\n"
        [libprotobuf ERROR /a/text_format.cc:337] Error parsing text-format inference.ModelConfig: 5:81: Invalid value
        I1120 19:46:17.505994 6238 server.cc:345] "Timeout 8"
        error: creating server: load failed
        Traceback (most recent call last):
          File "model.py", line 3
        """
    ).splitlines()
    assert error_lines(log) == [
        'failed: "x"',
        "At:",
        "  model.py(3): initialize",
        "Error parsing text-format inference.ModelConfig: 5:81: Invalid value",
        "error: creating server: load failed",
        "Traceback (most recent call last):",
        '  File "model.py", line 3',
    ]
    assert error_lines([f"E1120 19:46:15.503476 6238 a.cc:1] {n}" for n in range(9)], limit=4) == [
        "0",
        "1",
        "... 5 lines left out ...",
        "7",
        "8",
    ]
