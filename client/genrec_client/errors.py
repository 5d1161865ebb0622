"""What a call can end in, other than an answer."""

from __future__ import annotations


class RecommendError(Exception):
    """A call that got no answer; also the class of every failure that has no class of its own.

    message: the server's (or gRPC's) own words. code: the gRPC status name, such as "UNAVAILABLE"; "INTERNAL" also
    stands for an answer that breaks the wire contract. attempts: requests sent for this call; 0 when it was refused
    before anything was sent. address: where the last attempt went, "" when there was none. note: why the client did not
    try again, "" when that goes without saying. request_id: that the server's log names the request by, "" for one
    that was not sent.
    """

    request_id = ""

    def __init__(self, message: str, code: str, attempts: int = 0, address: str = "", note: str = "") -> None:
        # All of them go to `args`, so that the error survives pickling between worker processes.
        super().__init__(message, code, attempts, address, note)
        self.message = message
        self.code = code
        self.attempts = attempts
        self.address = address
        self.note = note

    def __str__(self) -> str:
        where = f" from {self.address}" if self.address else ""
        tries = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.code}{where}{tries}: {self.message}{note}"


class InvalidRequest(RecommendError):
    """The request itself is wrong, here or by the server's judgement; sending it again cannot help."""


class Unavailable(RecommendError):
    """No address could answer: stopping, restarting or unreachable servers."""


class Overloaded(RecommendError):
    """The server refused the request because its queue is full; it was not tried elsewhere, on purpose."""


class DeadlineExceeded(RecommendError):
    """The time for the call ran out, at the client or in the server's queue (then `code` is "UNAVAILABLE")."""
