"""Finds a Triton Inference Server and runs it as a child process.

An installed ``tritonserver`` (as in NVIDIA's container images) is used where there is one; otherwise the server inside
the ``nvidia-pytriton`` wheel, which is a complete ``tritonserver`` with the Python backend and needs no container::

    with TritonServer("served/model_repository", models=["recommend"]) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

Linux only, as Triton is. This file is also run as a script: see :func:`_launch`.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

WHEEL = "nvidia-pytriton"
DEFAULT_PREFIX = Path("/opt/tritonserver")
STUB_NAME = "triton_python_backend_stub"
SHM_DIR = Path("/dev/shm")
HOW_TO_INSTALL = (
    "install one with `pip install genrec-triton[triton]` (the server inside the nvidia-pytriton wheel), or put an "
    "installed `tritonserver` on PATH"
)
_LOG_LINES_KEPT = 5000
_POLL_SECONDS = 0.05
_CRASH_CHECK_SECONDS = 2.0
# I0102 03:04:05.678901 1234 file.cc:56] "message, escaped as in C"
_LOG_ENTRY = re.compile(r"(?P<severity>[IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ [\w.]+:\d+\] (?P<text>.*)")
# what every server without a GPU says
_HARMLESS_ERRORS = ("CudaDriverHelper has not been initialized", "CUDA driver version is insufficient")


class TritonError(RuntimeError):
    """Something about finding or running the server that its operator has to fix."""


class TritonNotFoundError(TritonError):
    """There is no Triton server, or no Python backend that fits the running interpreter."""


class TritonStartError(TritonError):
    """The server did not become ready. The message holds the server's own error lines.

    Attributes:
        returncode: exit status of the server, or None when it was still running at the time limit.
        log: the recent log lines, whole.
    """

    def __init__(self, message: str, returncode: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.log = list(log)


@dataclass(frozen=True)
class TritonInstall:
    """Where the parts of a Triton server lie.

    Attributes:
        binary: the ``tritonserver`` executable.
        library_dirs: what the dynamic loader has to search in addition to the system's folders.
        backends_dir: the folder with one sub-folder for each backend.
        stubs_dir: the folder with one Python stub for each Python version (``3.11/triton_python_backend_stub``),
            or None where the Python backend is already complete.
        version: Triton's version, or the wheel's where Triton's is not recorded; None when unknown.
    """

    binary: Path
    library_dirs: tuple[Path, ...]
    backends_dir: Path
    stubs_dir: Path | None = None
    version: str | None = None

    @property
    def python_backend_dir(self) -> Path | None:
        """The folder of ``libtriton_python.so``, or None when this server has no Python backend."""
        folder = self.backends_dir / "python"
        return folder if (folder / "libtriton_python.so").is_file() else None


def find_triton() -> TritonInstall:
    """The server to run: ``tritonserver`` on PATH, else in ``/opt/tritonserver``, else in the nvidia-pytriton wheel.

    Raises:
        TritonNotFoundError: there is none; the message says how to get one.
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
    """The folder for ``--backend-directory`` with a Python backend for the running interpreter.

    Args:
        install: the server.
        target_dir: written to only for a server from a wheel, whose stubs lie apart from its backend; there
            ``<target_dir>/python`` is made (or made anew) out of links to the wheel's files.

    Returns:
        ``target_dir``, or the server's own folder when its backends are complete.

    Raises:
        TritonNotFoundError: no Python backend, or none for this Python version.
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
    """The Python version that a stub is linked with, as ``3.12``; None when that cannot be told."""
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


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ServerTls:
    """TLS of the gRPC endpoint, PEM files. Triton's HTTP endpoint has none: keep it inside, for health checks.

    Attributes:
        cert, key: the server's certificate chain and its private key.
        client_ca: with it, clients must bring a certificate that it signed.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def flags(self) -> dict[str, object]:
        """``tritonserver`` flags. Raises TritonStartError for a file that cannot be read."""
        for path in filter(None, (self.cert, self.key, self.client_ca)):
            if not os.access(path, os.R_OK):
                raise TritonStartError(f"the TLS file {path} is missing or not readable")
        files = {"grpc-use-ssl": "true", "grpc-server-cert": self.cert, "grpc-server-key": self.key}
        if self.client_ca is None:
            return files
        return files | {"grpc-use-ssl": "false", "grpc-use-ssl-mutual": "true", "grpc-root-cert": self.client_ca}


class TritonServer:
    """One ``tritonserver`` process. A context manager: starts on entry, stops on exit.

    The server never outlives this process, however that ends (SIGKILL included), and leaves no Python stub process and
    no file in ``/dev/shm`` behind. Several servers can run side by side.

    Args:
        repository: the model repository.
        models: models to load (the steps of an ensemble come with it); ``["*"]`` loads all.
        host: address to listen on. Loopback by default: the server has no authentication of its own.
        grpc_port: 0 picks a free one.
        http_port, metrics_port: likewise; None switches the endpoint off.
        tls: of the gRPC endpoint; needs the HTTP endpoint, which is then asked whether the server is ready.
        log_path: where the server's and its models' output goes; None passes it to this process's standard error.
        exit_timeout: seconds that running requests get to finish after SIGTERM; 5 s later the server is killed.
        shm_bytes: shared memory that each Python model instance starts with, and grows by. The backend's floor and the
            default here is 1 MiB, so that a container's usual 64 MiB ``/dev/shm`` holds several instances.
        auto_complete: let Triton fill gaps in ``config.pbtxt``; costs one more process start for each Python model.
        extra_args: more flags for ``tritonserver``, which win over the ones given here.
        env: added to this process's environment for the server and its models.
        install: the server to run; default :func:`find_triton`.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        models: Sequence[str],
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int | None = 0,
        metrics_port: int | None = 0,
        tls: ServerTls | None = None,
        log_path: str | os.PathLike[str] | None = None,
        exit_timeout: float = 10.0,
        shm_bytes: int = 1 << 20,
        auto_complete: bool = False,
        extra_args: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        install: TritonInstall | None = None,
    ) -> None:
        if isinstance(models, str) or not models:
            raise ValueError(f"models must be a sequence of at least one model name, got {models!r}")
        if tls is not None and http_port is None:
            raise ValueError("tls needs the HTTP endpoint for the readiness check; give an http_port")
        self.repository = Path(repository)
        self.models = tuple(models)
        self.host = host
        self.exit_timeout = exit_timeout
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._tls = tls
        self._log_path = Path(log_path).absolute() if log_path is not None else None
        self._shm_bytes = shm_bytes
        self._auto_complete = auto_complete
        self._extra_args = tuple(extra_args)
        self._env = dict(env or {})
        self._install = install
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None
        self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES_KEPT)
        self._shm_prefix = ""
        self._run_dir: Path | None = None
        self._stop_asked = False

    @property
    def grpc_url(self) -> str:
        """``host:port`` for ``tritonclient.grpc``."""
        return self._address("grpc")

    @property
    def http_url(self) -> str:
        """``host:port`` for ``tritonclient.http`` (no scheme, as it wants it)."""
        return self._address("http")

    @property
    def metrics_url(self) -> str:
        """The Prometheus endpoint, whole."""
        return f"http://{self._address('metrics')}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before the start and after the end."""
        return self._process.pid if self.is_running and self._process is not None else None

    @property
    def log_path(self) -> Path | None:
        """The log file, or None when the log goes to standard error."""
        return self._log_path

    @property
    def shm_prefix(self) -> str:
        """What the names of this server's files in ``/dev/shm`` begin with; empty before the start."""
        return self._shm_prefix

    @property
    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    def crashed_stubs(self) -> set[int]:
        """Process ids of Python models' processes that crashed.

        Triton does not reap them, but does so with those that end because their model is unloaded or fails to load, so
        that the crashed ones are the zombies among its children.
        """
        crashed = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
                state, parent = rest.split()[:2]
                if state == "Z" and int(parent) == self.pid and name in STUB_NAME:  # the kernel cuts names to 15 bytes
                    crashed.add(int(stat.parent.name))
        return crashed

    def start(self, timeout: float = 120.0) -> Self:
        """Starts the server and waits until it and every model are ready.

        Args:
            timeout: seconds to wait.

        Raises:
            TritonStartError: it ended or was not ready in time; it does not run any more.
            TritonNotFoundError: there is no server to start.
        """
        if self.is_running:
            raise TritonError(f"this server already runs, with pid {self.pid}")
        if not self.repository.is_dir():
            raise TritonStartError(f"the model repository {self.repository} is not a folder")
        install = self._install or find_triton()
        self._stop_asked = False
        for attempt in range(3):
            self._ports = self._choose_ports()
            try:
                self._spawn(install)
                self._wait_until_ready(time.monotonic() + timeout, timeout)
                return self
            except TritonStartError as error:
                self.stop(grace=0)
                # Between choosing a free port and the server taking it, another process can be faster.
                lost_race = 0 in self._wanted_ports.values() and any("already in use" in line for line in error.log)
                # Seldom, on a loaded machine, Triton aborts on a lock of the memory that it shares with its stubs.
                lost_lock = any("boost::interprocess::lock_exception" in line for line in error.log)
                if attempt == 2 or not (lost_race or lost_lock) or self._stop_asked:
                    raise
            except BaseException:
                self.stop(grace=0)
                raise
        raise AssertionError("unreachable")

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the server.

        Returns:
            its exit status, 128 + n when signal n ended it.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """
        if self._process is None:
            raise TritonError("the server has not been started")
        status = self._process.wait(timeout)
        self._clean_up()
        return status if status >= 0 else 128 - status

    def terminate(self) -> None:
        """Asks the server to finish its running requests and end (SIGTERM); does not wait."""
        self._stop_asked = True
        if self._process is not None and self.is_running:
            self._process.terminate()

    def stop(self, grace: float | None = None) -> int | None:
        """Ends the server: SIGTERM, then SIGKILL if it still runs after ``grace`` seconds. Does nothing if not running.

        Args:
            grace: default ``exit_timeout`` + 5; 0 kills at once.

        Returns:
            the exit status as :meth:`wait` gives it, or None when the server was never started.
        """
        if self._process is None:
            return None
        if self.is_running and grace != 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.exit_timeout + 5 if grace is None else grace)
        if self.is_running:
            self._process.kill()
        return self.wait()

    def run_forever(self, timeout: float = 120.0, on_ready: Callable[[], None] | None = None) -> int:
        """Runs the server in the foreground until it ends; SIGINT and SIGTERM are passed on, a second one kills it.

        Starts the server if it is not running, with ``timeout`` as in :meth:`start`, and calls ``on_ready``. Ends
        it when the process of a Python model has crashed: Triton does not start such a process again and stays ready,
        while every request that needs it fails.

        Returns:
            the exit status, for ``sys.exit``; 1 after a crash.

        Raises:
            TritonStartError: the server could not be started, and not because of a signal.
        """

        def pass_on(signum: int, frame: FrameType | None) -> None:
            if self._stop_asked and self._process is not None and self.is_running:
                self._process.kill()
            self.terminate()

        # Before the start: as process 1 of a container, a process without handlers is deaf to both signals.
        with _signal_handlers((signal.SIGINT, signal.SIGTERM), pass_on):
            if not self.is_running:
                try:
                    self.start(timeout)
                except TritonStartError:
                    if not self._stop_asked:
                        raise
                    return 128 + signal.SIGTERM
            try:
                if on_ready is not None:
                    on_ready()
                crashed: set[int] = set()
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return self.wait(_CRASH_CHECK_SECONDS)
                    # Only those seen twice: a process that ends with its model is a zombie for a moment, too.
                    before, crashed = crashed, self.crashed_stubs()
                    if before & crashed and not self._stop_asked:
                        pids = ", ".join(map(str, sorted(crashed)))
                        print(f"a Python model's process crashed (pid {pids}): ending the server", file=sys.stderr)
                        self.stop(grace=_CRASH_CHECK_SECONDS)
                        return 1
            finally:
                self.stop()

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _address(self, endpoint: str) -> str:
        if self._wanted_ports[endpoint] is None:
            raise TritonError(f"the {endpoint} endpoint is switched off")
        if endpoint not in self._ports:
            raise TritonError("the ports are chosen when the server is started")
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"{host}:{self._ports[endpoint]}"

    def _choose_ports(self) -> dict[str, int]:
        ports: dict[str, int] = {}
        for endpoint, port in self._wanted_ports.items():
            if port is None:
                continue
            if port == 0:
                while (port := free_port(self.host)) in (*ports.values(), *self._wanted_ports.values()):
                    pass
            elif port in ports.values():
                raise TritonStartError(f"{endpoint} port {port} is asked for twice")
            else:
                self._check_unused(endpoint, port)
            ports[endpoint] = port
        return ports

    def _check_unused(self, endpoint: str, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port))
            except OSError as error:
                raise TritonStartError(
                    f"cannot listen on {self.host}:{port} for {endpoint}: {error.strerror}; "
                    f"choose another {endpoint} port, or 0 for a free one"
                ) from None

    def _arguments(self, backends: Path) -> list[str]:
        flags = {
            "model-repository": self.repository.absolute(),
            "backend-directory": backends,
            "model-control-mode": "explicit",
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": max(1, round(self.exit_timeout)),
            "grpc-address": self.host,
            "grpc-port": self._ports["grpc"],
            "allow-http": str("http" in self._ports).lower(),
            "allow-metrics": str("metrics" in self._ports).lower(),
        }
        for endpoint in ("http", "metrics"):
            if endpoint in self._ports:
                flags |= {f"{endpoint}-address": self.host, f"{endpoint}-port": self._ports[endpoint]}
        if "metrics" in self._ports:
            flags["metrics-config"] = "summary_latencies=true"
        if self._tls is not None:
            flags |= self._tls.flags()
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        if not self._auto_complete:
            arguments.append("--disable-auto-complete-config")
        arguments += [f"--load-model={model}" for model in self.models]
        shared_memory = {
            "shm-region-prefix-name": self._shm_prefix,
            "shm-default-byte-size": self._shm_bytes,
            "shm-growth-byte-size": self._shm_bytes,
        }
        arguments += [f"--backend-config=python,{name}={value}" for name, value in shared_memory.items()]
        return [*arguments, *self._extra_args]  # Triton lets the last of several equal flags win

    def _environment(self, install: TritonInstall, backends: Path) -> dict[str, str]:
        env = os.environ | self._env
        libraries = [*map(str, install.library_dirs), str(backends / "python"), env.get("LD_LIBRARY_PATH", "")]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        # The stub embeds Python and finds its packages through the first `python3` on PATH. Not resolved: in a virtual
        # environment the link's own folder is the one that counts.
        path = [str(Path(sys.executable).parent), env.get("PATH", os.defpath)]
        env["PATH"] = os.pathsep.join(filter(None, path))
        return env

    def _spawn(self, install: TritonInstall) -> None:
        self._shm_prefix = f"genrec-{uuid.uuid4().hex[:12]}-"
        self._run_dir = Path(tempfile.mkdtemp(prefix="genrec-triton-"))
        self._log.clear()
        backends = prepare_backends(install, self._run_dir / "backends")
        launch = [str(os.getpid()), self._shm_prefix, str(self._run_dir), str(self.exit_timeout + 5)]
        log_file: IO[bytes] | None = None
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            log_file = self._log_path.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *launch, str(install.binary), *self._arguments(backends)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(install, backends),
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )
        assert self._process.stdout is not None
        self._pump = threading.Thread(target=self._read_log, args=(self._process.stdout, log_file), daemon=True)
        self._pump.start()

    def _read_log(self, source: IO[bytes], log_file: IO[bytes] | None) -> None:
        with source, log_file or contextlib.nullcontext():
            for line in source:
                self._log.append(line.decode("utf-8", "replace").rstrip("\n"))
                # A full disk or a closed stream must not stop the reading: the server would block on its next line.
                with contextlib.suppress(OSError, ValueError):
                    if log_file is not None:
                        log_file.write(line)
                        log_file.flush()
                    else:
                        sys.stderr.write(self._log[-1] + "\n")

    def _wait_until_ready(self, deadline: float, timeout: float) -> None:
        waiting_for = ["the server", *(f"model {name}" for name in self.models if name != "*")]
        with self._open_readiness() as is_ready:
            while True:
                if not self.is_running:
                    raise self._start_error("ended before it was ready")
                if self._stop_asked:
                    raise self._start_error("was asked to stop before it was ready")
                ready = is_ready(waiting_for[0].partition("model ")[2])
                if ready and len(waiting_for) == 1:
                    return
                if ready:
                    del waiting_for[0]
                elif time.monotonic() > deadline:
                    raise self._start_error(f"was not ready after {timeout:g} s: still waiting for {waiting_for[0]}")
                else:
                    time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def _open_readiness(self) -> Iterator[Callable[[str], bool]]:
        """Whether a model, or with "" the server, is ready: over gRPC, or over HTTP where gRPC wants certificates."""
        if self._tls is not None:
            yield lambda model: _answers(f"http://{self.http_url}/v2/{f'models/{model}' if model else 'health'}/ready")
            return
        import tritonclient.grpc
        from tritonclient.utils import InferenceServerException

        # Own channel arguments: the default pauses between connection attempts grow to many seconds.
        channel = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        client = tritonclient.grpc.InferenceServerClient(self.grpc_url, channel_args=channel)

        def is_ready(model: str) -> bool:
            try:
                if model:
                    return client.is_model_ready(model, client_timeout=1.0)
                return client.is_server_ready(client_timeout=1.0)
            except InferenceServerException:
                return False

        with contextlib.closing(client):
            yield is_ready

    def _start_error(self, what: str) -> TritonStartError:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            what += f" (exit status {status})"
            if self._pump is not None:
                self._pump.join(2)  # the last lines are the ones that matter
        log = list(self._log)
        lines = error_lines(log) or log[-20:]
        where = f"\nwhole log: {self._log_path}" if self._log_path else ""
        return TritonStartError(f"the Triton server {what}\n" + "\n".join(lines) + where, status, log)

    def _clean_up(self) -> None:
        if self._process is None or self._run_dir is None:
            return
        _remove_leftovers(self._process.pid, self._shm_prefix, str(self._run_dir))
        self._run_dir = None
        if self._pump is not None:
            self._pump.join(2)


def error_lines(log: Iterable[str], limit: int = 40) -> list[str]:
    """The lines of a Triton log that say what went wrong.

    Those are the error lines (``E0102 03:04:05.6 ...``) with their messages unescaped, such as the traceback of a
    ``model.py``, and what the dynamic loader, a Python process or Triton's last words put there without that prefix.

    Args:
        log: lines of a log, oldest first.
        limit: lines to return at most; the middle is left out.
    """
    kept: dict[str, None] = {}  # ordered, and each line once: Triton repeats a failure at every level that it passes
    following = False
    for line in log:
        entry = _LOG_ENTRY.match(line)
        if entry:
            following = entry["severity"] in "EF" and not any(noise in line for noise in _HARMLESS_ERRORS)
            line = entry["text"]
            if line.startswith('"') and line.endswith('"'):
                line = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), line[1:-1])
        elif line.startswith(
            "[libprotobuf ERROR"
        ):  # what is wrong with a config.pbtxt, which the error line leaves out
            kept[re.sub(r"^\[.*?\] ", "", line)] = None
            continue
        elif line.startswith(("Traceback (most recent", "error:")) or "error while loading shared libraries" in line:
            following = True
        if following:
            kept.update((part, None) for part in line.splitlines() if part.strip(" ;"))
    lines = list(kept)
    if len(lines) > limit:
        half = limit // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines left out ...", *lines[-half:]]
    return lines


def _answers(url: str) -> bool:
    """Whether a GET of `url` is answered with status 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _signal_handlers(signals: Sequence[signal.Signals], handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _remove_leftovers(group: int, shm_prefix: str, run_dir: str) -> None:
    """Removes what a server left: processes of its group, its shared memory, its folder of links."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    if shm_prefix:
        for leftover in SHM_DIR.glob(f"{shm_prefix}*"):
            leftover.unlink(missing_ok=True)
    shutil.rmtree(run_dir, ignore_errors=True)


def _launch(parent_pid: int, shm_prefix: str, run_dir: str, grace: float, command: Sequence[str]) -> None:
    """Becomes the server, after leaving a guard process behind. Runs in the child, before ``tritonserver``.

    The guard ends the server when the process that started it dies. It watches process handles (pidfd) instead of using
    PR_SET_PDEATHSIG, because that fires when the starting *thread* ends, needs code between fork and exec in a process
    with threads, and cannot remove the shared memory of a server that had to be killed.
    """
    server_pid = os.getpid()
    try:
        parent, server = os.pidfd_open(parent_pid), os.pidfd_open(server_pid)
    except OSError as error:
        print(f"no guard process, the server may outlive its parent: pidfd_open: {error}", file=sys.stderr, flush=True)
    else:
        if os.getppid() != parent_pid:  # it died before its handle was opened
            sys.exit(1)
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            _guard(parent, server, server_pid, grace)
            _remove_leftovers(server_pid, shm_prefix, run_dir)
            os._exit(0)
    os.execv(command[0], list(command))


def _guard(parent: int, server: int, server_pid: int, grace: float) -> None:
    """Returns when the server has ended; ends it when the parent has."""
    ended = select.select([parent, server], [], [])[0]
    if server not in ended:
        os.kill(server_pid, signal.SIGTERM)
        if not select.select([server], [], [], grace)[0]:
            os.kill(server_pid, signal.SIGKILL)
            select.select([server], [], [])


if __name__ == "__main__":
    _launch(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5:])
