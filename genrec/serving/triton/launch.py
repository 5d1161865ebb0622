"""Becomes the server, in a process of its own.

Run as a script without site-packages: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

SHM_DIR = Path("/dev/shm")
WAITING = "genrec-waiting-"  # and the server's process: what steps keep there that they both map
ARRIVED = "genrec-arrived"  # the header by which the front tells when a request came, in microseconds since 1970
RESTARTS = "GENREC_RESTARTS"  # in the environment of a server and its models: how often it was started again


def remove_leftovers(group: int, shm_prefix: str, run_dir: str) -> None:
    """Removes what a server left: processes of its group, its shared memory, its folder of links if one is named."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    if shm_prefix:
        for leftover in (*SHM_DIR.glob(f"{shm_prefix}*"), *SHM_DIR.glob(f"{WAITING}{group}-*")):
            leftover.unlink(missing_ok=True)
    if run_dir:
        shutil.rmtree(run_dir, ignore_errors=True)


def _launch(
    parent_pid: int, shm_prefix: str, run_dir: str, grace: float, keep_run_dir: bool, command: Sequence[str]
) -> None:
    """Becomes the server, after leaving a guard process behind. Runs in the child, before `tritonserver`.

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
            parent_ended = _guard(parent, server, server_pid, grace)
            remove_leftovers(server_pid, shm_prefix, run_dir if parent_ended or not keep_run_dir else "")
            os._exit(0)
    os.execv(command[0], list(command))


def _guard(parent: int, server: int, server_pid: int, grace: float) -> bool:
    """Returns when the server has ended; ends it when the parent has. Gives whether the parent has."""
    ended = select.select([parent, server], [], [])[0]
    if server not in ended:
        os.kill(server_pid, signal.SIGTERM)
        if not select.select([server], [], [], grace)[0]:
            os.kill(server_pid, signal.SIGKILL)
            select.select([server], [], [])
    return parent in ended


if __name__ == "__main__":
    _launch(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5] == "1", sys.argv[6:])
