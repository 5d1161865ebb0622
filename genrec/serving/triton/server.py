"""One Triton server as a child process."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
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

from genrec.serving.triton import launch
from genrec.serving.triton.errors import TritonError, TritonStartError
from genrec.serving.triton.install import STUB_NAME, TritonInstall, find_triton, prepare_backends
from genrec.serving.triton.log import error_lines

if TYPE_CHECKING:
    from typing_extensions import Self

_LOG_LINES_KEPT = 5000
_POLL_SECONDS = 0.05
_CRASH_CHECK_SECONDS = 2.0


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
                while (port := _free_port(self.host)) in (*ports.values(), *self._wanted_ports.values()):
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
        given = [str(os.getpid()), self._shm_prefix, str(self._run_dir), str(self.exit_timeout + 5)]
        log_file: IO[bytes] | None = None
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            log_file = self._log_path.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, *given, str(install.binary), *self._arguments(backends)],
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
        launch.remove_leftovers(self._process.pid, self._shm_prefix, str(self._run_dir))
        self._run_dir = None
        if self._pump is not None:
            self._pump.join(2)


def _free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


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
