"""Runs a server in the foreground, and starts again what dies of it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from genrec.reporting.log import say
from genrec.serving.triton.errors import TritonError, TritonStartError
from genrec.serving.triton.server import TritonServer
from genrec.serving.triton.signals import signal_handlers

_CHECK_S = 0.1
_END_S = 2.0  # for a server that ends because something died
_WITHIN_S = 300.0
_WITHIN = f"times within {_WITHIN_S / 60:g} minutes"


class Beside(Protocol):
    """What stands beside the server, which cannot do without it."""

    def fault(self) -> str:
        """What is wrong with it, "" if nothing is."""

    def restart(self) -> None:
        """Starts it again. Raises TritonError."""


def run_in_foreground(
    server: TritonServer,
    on_ready: Callable[[], None] = lambda: None,
    *,
    timeout: float = 120.0,
    beside: Beside | None = None,
    restarts: int = 0,
    before_restart: Callable[[], None] = lambda: None,
) -> int:
    """Runs the server until it ends; SIGINT and SIGTERM are passed on, a second one kills it.

    Starts the server if it is not running, with `timeout` as in `TritonServer.start`, and calls `on_ready` once. What
    dies is started again, `restarts` times within 5 minutes at most: `beside` alone, or the server as a whole. That is
    also when the process of a Python model has crashed: Triton does not start such a process again and stays ready,
    while every request that needs it fails. before_restart: called before the server is started again; what it raises
    ends the server.

    Gives the exit status, for `sys.exit`: the server's own; 1 after a crash of a model's process or of `beside` that is
    one too many; 128 + SIGTERM after a signal during a start. Raises TritonStartError when the server could not be
    started, and not because of a signal.
    """
    return _Foreground(server, timeout, beside, restarts, before_restart).run(on_ready)


class _Foreground:
    def __init__(
        self,
        server: TritonServer,
        timeout: float,
        beside: Beside | None,
        restarts: int,
        before_restart: Callable[[], None],
    ) -> None:
        self._server, self._timeout, self._beside = server, timeout, beside
        self._restarts, self._before_restart = restarts, before_restart
        self._restarted: deque[float] = deque()  # when, within the last minutes
        self._stop_asked = False

    def run(self, on_ready: Callable[[], None]) -> int:
        # Before the start: as process 1 of a container, a process without handlers is deaf to both signals.
        with signal_handlers((signal.SIGINT, signal.SIGTERM), self._pass_on):
            try:
                if not self._server.is_running:
                    self._server.start(self._timeout, self._is_stop_asked)
                on_ready()
                while True:
                    status, why = self._until_something_dies()
                    if not why:
                        return status
                    if not self._may_restart():
                        tired = f", {self._restarts} {_WITHIN}" if self._restarts else ""
                        say(f"{why}{tired}: ending the server")
                        self._server.stop(grace=_END_S)
                        return status
                    self._restart(why)
            except TritonStartError:
                if not self._stop_asked:
                    raise
                return 128 + signal.SIGTERM
            finally:
                self._server.stop()

    def _restart(self, why: str) -> None:
        """Starts again what died. A start that fails, because it died anew, is tried again as often as is allowed."""
        while True:
            began = time.monotonic()
            say(f"{why}: starting it again, {len(self._restarted)} of {self._restarts} {_WITHIN}")
            try:
                if self._beside is not None and self._beside.fault():
                    self._beside.restart()
                if not self._server.is_running or self._server.crashed_stubs():
                    self._server.stop(grace=0)  # of no use any more, and slow to end while a model is missing
                    self._before_restart()
                    self._server.restart(self._timeout, self._is_stop_asked)
            except TritonError as error:
                if self._stop_asked or not self._may_restart():
                    raise
                why = str(error).splitlines()[0]
            else:
                say(f"serving again after {time.monotonic() - began:.1f} s")
                return

    def _until_something_dies(self) -> tuple[int, str]:
        """The exit status, and what has died; "" for a server that ended because it was asked to."""
        crashed: set[int] = set()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._server.wait(_CHECK_S)
                return status, "" if self._stop_asked else f"the Triton server ended with status {status}"
            if self._stop_asked:
                continue
            # Only those seen twice: a process that ends with its model is a zombie for a moment, too.
            before, crashed = crashed, self._server.crashed_stubs()
            if before & crashed:
                return 1, f"a Python model's process crashed (pid {', '.join(map(str, sorted(crashed)))})"
            if self._beside is not None and (what := self._beside.fault()):
                return 1, what

    def _may_restart(self) -> bool:
        """Whether one more restart is allowed now; it is then counted."""
        now = time.monotonic()
        while self._restarted and self._restarted[0] < now - _WITHIN_S:
            self._restarted.popleft()
        if self._stop_asked or len(self._restarted) >= self._restarts:
            return False
        self._restarted.append(now)
        return True

    def _is_stop_asked(self) -> bool:
        return self._stop_asked

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if self._stop_asked:
            self._server.kill()
        self._stop_asked = True
        self._server.terminate()
