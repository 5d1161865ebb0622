"""What can go wrong with a server, for its operator."""

from __future__ import annotations

from collections.abc import Sequence


class TritonError(RuntimeError):
    """Something about finding or running the server that its operator has to fix."""


class TritonNotFoundError(TritonError):
    """There is no Triton server, or no Python backend that fits the running interpreter."""


class TritonStartError(TritonError):
    """The server did not become ready. The message's first line says why; the server's own error lines follow.

    returncode: exit status of the server, or None when it was still running at the time limit. log: the recent log
    lines, whole.
    """

    def __init__(self, message: str, returncode: int | None = None, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.log = list(log)
