"""The front's process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.serving.front.config import MAX_REQUEST_BYTES, write_config
from genrec.serving.front.haproxy import FrontError, find_haproxy
from genrec.serving.front.tokens import read_tokens
from genrec.serving.triton.names import plain_scratch
from genrec.serving.triton.ports import choose_ports
from genrec.serving.triton.process import ServerProcess
from genrec.serving.triton.server import socket_paths
from genrec.serving.triton.tls import ServerTls

if TYPE_CHECKING:
    from typing_extensions import Self

_STARTS = 3
_START_S = 10.0
_END_S = 2.0
_LONGEST = 80  # characters of the folder of sockets, whose own names may have 107


class Front:
    """One HAProxy process before a Triton server. A context manager: starts on entry, stops on exit.

    It can be started before the server: until that listens, calls are answered with UNAVAILABLE or 503. It never
    outlives this process, and leaves nothing behind.

    model: the one that ModelInfer and the HTTP endpoint reach. streaming: that ModelStreamInfer reaches; None closes
    that call. host: address to listen on. grpc_port, http_port: 0 picks a free one. metrics_port: of HAProxy's own
    metrics, likewise; None switches them off. tls: of the gRPC endpoint; HTTP is not encrypted, and then only says how
    the server is. max_request_bytes: of one message, or of one body over HTTP. tokens: a file as `read_tokens` reads,
    of clients that may ask; None lets everybody in. log_path: where HAProxy's output goes; None passes it to standard
    error. haproxy: the program; by default `find_haproxy`'s.

    Raises FrontError if there is no HAProxy, it does not start, or the file of tokens cannot be used, and
    TritonStartError for a port that is in use and a TLS file that cannot be read.
    """

    def __init__(
        self,
        model: str,
        streaming: str | None = None,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int | None = None,
        tls: ServerTls | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        tokens: Path | None = None,
        log_path: Path | None = None,
        haproxy: Path | None = None,
    ) -> None:
        self._haproxy = haproxy or find_haproxy()
        self._model, self._streaming, self._tls = model, streaming, tls
        self._tokens = None if tokens is None else read_tokens(tokens)
        self._host, self._max_request_bytes, self._log_path = host, max_request_bytes, log_path
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._folder: Path | None = None
        self._process: ServerProcess | None = None

    @property
    def sockets(self) -> Path:
        """The folder for Triton's sockets, which nobody else may enter; there while the front runs."""
        if self._folder is None:
            raise FrontError("the front has not been started")
        return self._folder

    @property
    def grpc_url(self) -> str:
        """`host:port` for `tritonclient.grpc`."""
        return self._address("grpc")

    @property
    def http_url(self) -> str:
        """`host:port` for `tritonclient.http`."""
        return self._address("http")

    @property
    def metrics_url(self) -> str:
        """HAProxy's own Prometheus endpoint, whole."""
        return f"http://{self._address('metrics')}/metrics"

    @property
    def pid(self) -> int | None:
        """Process id of HAProxy; None when it does not run."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    def fault(self) -> str:
        """What is wrong with the front, without which nobody reaches the server; "" if nothing is."""
        if self._process is None or self._process.is_running:
            return ""
        return f"the front (HAProxy) ended with status {self._process.wait()}"

    def restart(self) -> None:
        """Starts HAProxy again, on the ports that it had. Raises FrontError or TritonStartError, as the start does."""
        self._stop()
        self._start(self.sockets, self._ports)

    def __enter__(self) -> Self:
        for attempt in range(_STARTS):
            folder = plain_scratch("genrec-front-")
            if len(str(folder)) > _LONGEST:
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix="genrec-front-", dir="/tmp"))
            try:
                self._start(folder, self._wanted_ports)
                break
            except BaseException as error:
                self._stop()
                shutil.rmtree(folder, ignore_errors=True)
                # A port that was free may have been taken meanwhile.
                again = isinstance(error, FrontError) and 0 in self._wanted_ports.values()
                if not again or attempt == _STARTS - 1:
                    raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def _start(self, folder: Path, ports: Mapping[str, int | None]) -> None:
        """Start HAProxy once. Raises FrontError if it does not come up."""
        self._ports = choose_ports(self._host, ports)
        config = write_config(
            folder,
            sockets=socket_paths(folder),
            host=self._host,
            ports=self._ports,
            model=self._model,
            streaming=self._streaming,
            tls=self._tls,
            max_request_bytes=self._max_request_bytes,
            tokens=self._tokens,
        )
        self._folder = folder
        self._process = ServerProcess(
            [str(self._haproxy), "-db", "-f", str(config)],
            os.environ,
            shm_prefix="",
            run_dir=folder,
            grace=_END_S,
            log_path=self._log_path,
            keep_run_dir=True,  # Triton's sockets lie there
        )
        self._wait_until_it_listens(self._process)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self._process.kill()
            self._process.wait()

    def _address(self, endpoint: str) -> str:
        if endpoint not in self._ports:
            raise FrontError(f"the front's {endpoint} endpoint is switched off, or the front has not been started")
        return f"{'127.0.0.1' if self._host == '0.0.0.0' else self._host}:{self._ports[endpoint]}"

    def _wait_until_it_listens(self, process: ServerProcess) -> None:
        deadline = time.monotonic() + _START_S
        address = self.grpc_url.rpartition(":")
        while True:
            if not process.is_running:
                raise FrontError(str(process.start_error("ended at its start", "the front (HAProxy)")))
            with contextlib.suppress(OSError), socket.create_connection((address[0], int(address[2])), 1.0):
                return
            if time.monotonic() > deadline:
                raise FrontError(
                    str(process.start_error(f"did not listen after {_START_S:g} s", "the front (HAProxy)"))
                )
            time.sleep(0.01)
