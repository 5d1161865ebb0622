"""Finds a Triton server and the Python backend that fits the running interpreter."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from genrec.serving.triton.errors import TritonNotFoundError

WHEEL = "nvidia-pytriton"
DEFAULT_PREFIX = Path("/opt/tritonserver")
STUB_NAME = "triton_python_backend_stub"
HOW_TO_INSTALL = (
    "install one with `pip install genrec-triton[triton]` (the server inside the nvidia-pytriton wheel), or put an "
    "installed `tritonserver` on PATH"
)


@dataclass(frozen=True)
class TritonInstall:
    """Where the parts of a Triton server lie.

    binary: the `tritonserver` executable. library_dirs: what the dynamic loader has to search in addition to the
    system's folders. backends_dir: the folder with one sub-folder for each backend. stubs_dir: the folder with one
    Python stub for each Python version (`3.11/triton_python_backend_stub`), or None where the Python backend is already
    complete. version: Triton's version, or the wheel's where Triton's is not recorded; None when unknown.
    """

    binary: Path
    library_dirs: tuple[Path, ...]
    backends_dir: Path
    stubs_dir: Path | None = None
    version: str | None = None

    @property
    def python_backend_dir(self) -> Path | None:
        """The folder of `libtriton_python.so`, or None when this server has no Python backend."""
        folder = self.backends_dir / "python"
        return folder if (folder / "libtriton_python.so").is_file() else None


def find_triton() -> TritonInstall:
    """The server to run: `tritonserver` on PATH, else in `/opt/tritonserver`, else in the nvidia-pytriton wheel.

    Raises TritonNotFoundError where there is none; the message says how to get one.
    """
    on_path = shutil.which("tritonserver")
    for candidate in (Path(on_path) if on_path else None, DEFAULT_PREFIX / "bin" / "tritonserver"):
        if candidate is not None and os.access(candidate, os.X_OK):
            return _installed(candidate.resolve())
    from_wheel = _from_wheel()
    if from_wheel is None:
        raise TritonNotFoundError(
            f"no Triton server found on PATH, in {DEFAULT_PREFIX} or in a wheel: {HOW_TO_INSTALL}"
        )
    return from_wheel


def _installed(binary: Path) -> TritonInstall:
    prefix = binary.parent.parent
    version_file = prefix / "TRITON_VERSION"
    return TritonInstall(
        binary=binary,
        library_dirs=tuple(folder for folder in (prefix / "lib",) if folder.is_dir()),
        backends_dir=prefix / "backends",
        version=version_file.read_text().strip() if version_file.is_file() else None,
    )


def _from_wheel() -> TritonInstall | None:
    # Through the wheel's metadata: importing pytriton takes a second and installs signal and exit handlers.
    try:
        wheel = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(wheel.locate_file("pytriton/tritonserver")))
    binary = root / "bin" / "tritonserver"
    if not binary.is_file():
        return None
    return TritonInstall(
        binary=binary,
        library_dirs=(Path(str(wheel.locate_file("nvidia_pytriton.libs"))),),
        backends_dir=root / "backends",
        stubs_dir=root / "python_backend_stubs",
        version=f"{WHEEL} {wheel.version}",
    )


def prepare_backends(install: TritonInstall, target_dir: str | os.PathLike[str]) -> Path:
    """The folder for `--backend-directory` with a Python backend for the running interpreter.

    That is `target_dir`, or the server's own folder when its backends are complete. target_dir: written to only for a
    server from a wheel, whose stubs lie apart from its backend; there `<target_dir>/python` is made (or made anew) out
    of links to the wheel's files. Raises TritonNotFoundError: no Python backend, or none for this Python version.
    """
    backend = install.python_backend_dir
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if backend is None:
        raise TritonNotFoundError(f"{install.binary} has no Python backend in {install.backends_dir}")
    if install.stubs_dir is None:
        built_for = _python_of_stub(backend / STUB_NAME)
        if built_for not in (None, running):
            raise TritonNotFoundError(
                f"the Python backend in {backend} is built for Python {built_for}, but this is Python {running}: "
                f"install genrec-triton for Python {built_for}, or replace {STUB_NAME} there"
            )
        return install.backends_dir

    stub = install.stubs_dir / running / STUB_NAME
    if not stub.is_file():
        available = sorted((p.parent.name for p in install.stubs_dir.glob(f"*/{STUB_NAME}")), key=_version_key)
        raise TritonNotFoundError(
            f"{install.version or install.binary} has no stub for Python {running}; it has {', '.join(available)}"
        )
    target = Path(target_dir).absolute()
    folder = target / "python"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub]
    # The stub needs libpython by name. A link beside it finds the running interpreter's own one (pyenv, uv, conda)
    # without putting the rest of that interpreter's library folder in front of the server's libraries.
    libpython = _shared_libpython()
    for source in sources + ([libpython] if libpython else []):
        link = folder / source.name
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(source)
        except OSError:  # a filesystem without links
            shutil.copy2(source, link)
    return target


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _python_of_stub(stub: Path) -> str | None:
    """The Python version that a stub is linked with, as `3.12`; None when that cannot be told."""
    try:
        match = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    except OSError:
        return None
    return match.group(1).decode() if match else None


def _shared_libpython() -> Path | None:
    name = str(sysconfig.get_config_var("INSTSONAME"))
    if ".so" not in name:
        return None
    for folder in (sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    return None
