"""What a step writes of single requests, where that is asked for: a line of JSON each, on standard output."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone

OFF, REFUSED, ALL = LOGGED = ("off", "refused", "all")
_LONGEST = 1000  # characters of a message: a line that a pipe takes in one piece stays whole
_INPUTS = ("history", "exclude", "top_k", "allow_history", "query", "rules", "input_ids")
_STANDARD_OUTPUT = 1


class RequestLog:
    """One step's. wanted: of `LOGGED`. messages: whether to write why one is refused, which may name its values.

    Raises ValueError if another one is wanted.
    """

    def __init__(self, step: str, wanted: str, messages: bool) -> None:
        if wanted not in LOGGED:
            raise ValueError(f"log_requests is {wanted!r}; use one of {', '.join(LOGGED)}")
        self._step, self._messages = step, messages
        self.refusals, self.answers = wanted != OFF, wanted == ALL

    def refused(self, request_id: str, status: str, reason: str, message: str) -> None:
        """status: of gRPC, by name. reason: in one word. message: what the client is told."""
        if not self.refusals:
            return
        told: dict[str, object] = {"outcome": "refused", "status": status, "reason": reason}
        named = message.partition(" ")[0].rstrip(":")
        if named in _INPUTS:
            told["input"] = named
        if self._messages:
            told["message"] = message[:_LONGEST]
        self._write("warning", request_id, told)

    def answered(self, request_ids: Sequence[str], began_ns: int, ended_ns: int) -> None:
        """A batch of this step."""
        for request_id in request_ids:
            self._write(
                "info",
                request_id,
                {"outcome": "answered", "ms": (ended_ns - began_ns) / 1e6, "batch": len(request_ids)},
            )

    def _write(self, level: str, request_id: str, told: dict[str, object]) -> None:
        head = {"time": now(), "level": level, "source": self._step, "request_id": request_id[:_LONGEST]}
        with suppress(OSError):  # a full disk: the request is answered all the same
            os.write(_STANDARD_OUTPUT, (json.dumps(head | told) + "\n").encode())


def now() -> str:
    """The time as logs have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
