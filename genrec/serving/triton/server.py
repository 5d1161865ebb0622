"""One Triton server as a child process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from genrec.serving.triton.errors import TritonError, TritonStartError
from genrec.serving.triton.flags import server_flags
from genrec.serving.triton.install import TritonInstall, find_triton, prepare_backends
from genrec.serving.triton.launch import RESTARTS
from genrec.serving.triton.names import plain_name, plain_scratch
from genrec.serving.triton.ports import choose_ports
from genrec.serving.triton.process import ServerProcess, server_environment
from genrec.serving.triton.readiness import grpc_readiness, http_readiness
from genrec.serving.triton.tls import ServerTls

if TYPE_CHECKING:
    from typing_extensions import Self

_STARTS = 3
_POLL_SECONDS = 0.05
_SOCKET_PORTS = {"grpc": 8001, "http": 8000}  # of nothing but names


def socket_paths(folder: Path) -> dict[str, Path]:
    """Where a server with `sockets` listens, by endpoint: Triton adds gRPC's port to the name that it is given."""
    return {"grpc": folder / f"grpc:{_SOCKET_PORTS['grpc']}", "http": folder / "http"}


class TritonServer:
    """One `tritonserver` process. A context manager: starts on entry, stops on exit.

    The server never outlives this process, however that ends (SIGKILL included), and leaves no Python stub process and
    no file in `/dev/shm` behind. Several servers can run side by side.

    repository: the model repository. models: models to load (the steps of an ensemble come with it); `["*"]` loads
    all. host: address to listen on. Loopback by default: the server has no authentication of its own. grpc_port: 0
    picks a free one. http_port, metrics_port: likewise; None switches the endpoint off. sockets: a folder for Unix
    sockets, which gRPC and HTTP then have in place of ports. tls: of the gRPC endpoint; needs the HTTP endpoint,
    which is then asked whether the server is ready. log_path: where the server's and its models' output goes; None
    passes it to this process's standard error. exit_timeout: seconds that running requests get to finish after
    SIGTERM; 5 s later the server is killed. shm_bytes: shared memory that each Python model instance starts with,
    and grows by. The backend's floor and the default here is 1 MiB, so that a container's usual 64 MiB `/dev/shm`
    holds several instances. auto_complete: let Triton fill gaps in `config.pbtxt`; costs one more process start for
    each Python model. extra_args: more flags for `tritonserver`, which win over the ones given here. env: added to
    this process's environment for the server and its models. install: the server to run; by default
    `find_triton`'s.
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
        sockets: Path | None = None,
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
        self._sockets = sockets
        self._tls = tls
        self._log_path = Path(log_path).absolute() if log_path is not None else None
        self._shm_bytes = shm_bytes
        self._auto_complete = auto_complete
        self._extra_args = tuple(extra_args)
        self._env = dict(env or {})
        self._install = install
        self._process: ServerProcess | None = None
        self._shm_prefix = ""
        self._restarts = 0

    @property
    def grpc_url(self) -> str:
        """`host:port` for `tritonclient.grpc`, or `unix:PATH`."""
        return self._address("grpc")

    @property
    def http_url(self) -> str:
        """`host:port` for `tritonclient.http` (no scheme, as it wants it), or `unix:PATH`."""
        return self._address("http")

    @property
    def metrics_url(self) -> str:
        """The Prometheus endpoint, whole."""
        return f"http://{self._address('metrics')}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before the start and after the end."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    @property
    def log_path(self) -> Path | None:
        """The log file, or None when the log goes to standard error."""
        return self._log_path

    @property
    def shm_prefix(self) -> str:
        """What the names of this server's files in `/dev/shm` begin with; empty before the start."""
        return self._shm_prefix

    @property
    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.is_running

    def crashed_stubs(self) -> set[int]:
        """Process ids of Python models' processes that crashed; empty when the server does not run."""
        return self._process.crashed_stubs() if self._process is not None and self._process.is_running else set()

    def start(self, timeout: float = 120.0, give_up: Callable[[], bool] = lambda: False) -> Self:
        """Starts the server and waits until it and every model are ready, `timeout` seconds at most.

        A server that ran before keeps the ports that it had. give_up: whether to end the start. Raises TritonStartError
        when it ended, was given up or was not ready in time; it does not run any more. Raises TritonNotFoundError when
        there is no server to start.
        """
        if self.is_running:
            raise TritonError(f"this server already runs, with pid {self.pid}")
        if not self.repository.is_dir():
            raise TritonStartError(f"the model repository {self.repository} is not a folder")
        install = self._install or find_triton()
        _require_tmp()
        had = self._ports if self._process is not None else {}
        for attempt in range(_STARTS):
            named = {} if self._sockets is None else _SOCKET_PORTS
            wanted = {name: had.get(name, port) for name, port in self._wanted_ports.items() if name not in named}
            self._ports = named | choose_ports(self.host, wanted)
            try:
                self._process = self._spawn(install)
                self._wait_until_ready(self._process, timeout, give_up)
                return self
            except TritonStartError as error:
                self.stop(grace=0)
                if attempt == _STARTS - 1 or not self._was_bad_luck(error, 0 in wanted.values()) or give_up():
                    raise
            except BaseException:
                self.stop(grace=0)
                raise
        raise AssertionError("unreachable")

    def restart(self, timeout: float = 120.0, give_up: Callable[[], bool] = lambda: False) -> None:
        """Kills the server if it runs, and starts it as `start` does. Its models see how often, in RESTARTS."""
        self.stop(grace=0)
        self._restarts += 1
        self.start(timeout, give_up)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the server; gives its exit status, 128 + n when signal n ended it.

        Raises subprocess.TimeoutExpired when it still runs after `timeout` seconds.
        """
        if self._process is None:
            raise TritonError("the server has not been started")
        return self._process.wait(timeout)

    def terminate(self) -> None:
        """Asks the server to finish its running requests and end (SIGTERM); does not wait."""
        if self._process is not None and self._process.is_running:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the server at once (SIGKILL); does not wait."""
        if self._process is not None and self._process.is_running:
            self._process.kill()

    def stop(self, grace: float | None = None) -> int | None:
        """Ends the server: SIGTERM, then SIGKILL if it still runs after `grace` seconds. Does nothing if not running.

        grace: by default `exit_timeout` + 5; 0 kills at once. Gives the exit status as `wait` does, or None when the
        server was never started.
        """
        if self._process is None:
            return None
        if self._process.is_running and grace != 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(self.exit_timeout + 5 if grace is None else grace)
        if self._process.is_running:
            self._process.kill()
        return self._process.wait()

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
        if self._sockets is not None and endpoint in _SOCKET_PORTS:
            return f"unix:{socket_paths(self._sockets)[endpoint]}"
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"{host}:{self._ports[endpoint]}"

    def _spawn(self, install: TritonInstall) -> ServerProcess:
        self._shm_prefix = f"genrec-{uuid.uuid4().hex[:12]}-"
        run_dir = plain_scratch("genrec-triton-")
        for path in socket_paths(self._sockets).values() if self._sockets is not None else ():
            path.unlink(missing_ok=True)  # of a server that was killed
        try:
            backends = prepare_backends(install, run_dir / "backends")
            flags = server_flags(
                plain_name(self.repository, run_dir / "repository"),
                self.models,
                backends=backends,
                host=self.host,
                ports=self._ports,
                sockets=self._sockets,
                tls=self._tls,
                exit_timeout=self.exit_timeout,
                auto_complete=self._auto_complete,
                shm_prefix=self._shm_prefix,
                shm_bytes=self._shm_bytes,
            )
            return ServerProcess(
                [str(install.binary), *flags, *self._extra_args],  # Triton lets the last of several equal flags win
                server_environment(install, backends, self._env | {RESTARTS: str(self._restarts)}),
                shm_prefix=self._shm_prefix,
                run_dir=run_dir,
                grace=self.exit_timeout + 5,
                log_path=self._log_path,
            )
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise

    def _wait_until_ready(self, process: ServerProcess, timeout: float, give_up: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        waiting_for = ["", *(model for model in self.models if model != "*")]  # "" is the server
        # Where gRPC wants certificates, HTTP is asked.
        readiness = grpc_readiness(self.grpc_url) if self._tls is None else http_readiness(self.http_url)
        with readiness as is_ready:
            while waiting_for:
                if not process.is_running:
                    raise process.start_error("ended before it was ready")
                if give_up():
                    raise process.start_error("was asked to stop before it was ready")
                if is_ready(waiting_for[0]):
                    del waiting_for[0]
                elif time.monotonic() > deadline:
                    missing = f"model {waiting_for[0]}" if waiting_for[0] else "the server"
                    raise process.start_error(f"was not ready after {timeout:g} s: still waiting for {missing}")
                else:
                    time.sleep(_POLL_SECONDS)

    def _was_bad_luck(self, error: TritonStartError, free_ports: bool) -> bool:
        """Whether another start can do better. free_ports: whether it would choose others."""
        # Between choosing a free port and the server taking it, another process can be faster.
        lost_race = free_ports and any("already in use" in line for line in error.log)
        # Seldom, on a loaded machine, Triton aborts on a lock of the memory that it shares with its stubs.
        lost_lock = any("boost::interprocess::lock_exception" in line for line in error.log)
        return lost_race or lost_lock


def _require_tmp() -> None:
    """Raises TritonStartError if Triton's Python backend, which has no other folder for it, cannot write to /tmp."""
    try:
        tempfile.TemporaryFile(dir="/tmp").close()
    except OSError as error:
        raise TritonStartError(
            f"/tmp cannot be written to: {error.strerror}; Triton's Python models need it: make it writable, or mount "
            "a volume there"
        ) from None
