"""The process of one run of the server, from its start to what remains after its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from genrec.serving.triton import launch
from genrec.serving.triton.errors import TritonStartError
from genrec.serving.triton.install import STUB_NAME, TritonInstall
from genrec.serving.triton.log import LogPump, error_lines


class ServerProcess:
    """A `tritonserver` that was started; it ends with this process at the latest, and leaves nothing behind.

    command: the server's. env: its whole environment. shm_prefix: what the names of its files in `/dev/shm` begin with.
    run_dir: a folder to remove after its end; with keep_run_dir only if this process has ended too. grace: seconds that
    it gets to end after the death of this process. log_path: where its output goes; None passes it to standard error.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        shm_prefix: str,
        run_dir: Path,
        grace: float,
        log_path: Path | None,
        keep_run_dir: bool = False,
    ) -> None:
        self._shm_prefix, self._run_dir, self._log_path = shm_prefix, run_dir, log_path
        self._keep_run_dir, self._stubs = keep_run_dir, set[int]()
        self._is_cleaned_up = False
        given = [str(os.getpid()), shm_prefix, str(run_dir), str(grace), str(int(keep_run_dir))]
        with contextlib.ExitStack() as opened:
            log_file = None
            if log_path is not None:
                log_path.parent.mkdir(parents=True, exist_ok=True)
                log_file = opened.enter_context(log_path.open("wb"))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launch.__file__, *given, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
            )
            opened.pop_all()  # the pump closes it
        assert self._process.stdout is not None
        self._pump = LogPump(self._process.stdout, log_file)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def crashed_stubs(self) -> set[int]:
        """Process ids of Python models' processes that crashed, of those that were there when this was first asked.

        Triton does not reap them, but does so with those that end because their model is unloaded or fails to load, so
        that the crashed ones are the zombies among its children.
        """
        if not self._stubs:
            self._stubs = {int(name) for name in os.listdir("/proc") if name.isdigit() and self._stub_state(name)}
        return {pid for pid in self._stubs if self._stub_state(str(pid)) == "Z"}

    def _stub_state(self, pid: str) -> str:
        """The state of a process, "" if it is none of this server's Python models."""
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
        except OSError:  # it has ended meanwhile
            return ""
        state, parent = rest.split()[:2]
        return state if int(parent) == self.pid and name in STUB_NAME else ""  # the kernel cuts names to 15 bytes

    def terminate(self) -> None:
        """SIGTERM, if it runs."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, 128 + n when signal n ended it. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        status = self._process.wait(timeout)
        if not self._is_cleaned_up:
            launch.remove_leftovers(self.pid, self._shm_prefix, "" if self._keep_run_dir else str(self._run_dir))
            self._is_cleaned_up = True
            self._pump.join()
        return status if status >= 0 else 128 - status

    def start_error(self, what: str, name: str = "the Triton server") -> TritonStartError:
        """The error whose first line says what happened to the server and why; its own error lines follow."""
        status = self._process.poll()
        if status is not None:
            what += f" (exit status {status})"
            self._pump.join()  # the last lines are the ones that matter
        log = self._pump.lines()
        lines = [line.removeprefix("error: ") for line in error_lines(log)]  # Triton's last words begin as ours do
        cause = next((line for line in lines if not line.startswith((" ", "\t", "Traceback "))), "")
        first = f"{name} {what}" + f": {cause}" * bool(cause)
        rest = [line for line in lines if line != cause] if lines else log[-20:]
        where = [f"whole log: {self._log_path}"] if self._log_path else []
        return TritonStartError("\n".join([first, *rest, *where]), status, log)


def server_environment(install: TritonInstall, backends: Path, added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `added`, and with what the server and its Python stubs need to be found."""
    env = os.environ | dict(added)
    libraries = [*map(str, install.library_dirs), str(backends / "python"), env.get("LD_LIBRARY_PATH", "")]
    env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    # The stub embeds Python and finds its packages through the first `python3` on PATH. Not resolved: in a virtual
    # environment the link's own folder is the one that counts.
    path = [str(Path(sys.executable).parent), env.get("PATH", os.defpath)]
    env["PATH"] = os.pathsep.join(filter(None, path))
    return env
