"""What a request is refused with, for recommendations and texts alike, and what is wrong with a user's data."""

from __future__ import annotations

# Triton's own words for it. They tell a refusal from a server that is away, which has the same status in Triton:
# clients and the front go by them.
TOO_MANY = "exceeds maximum queue size"


class InvalidRequest(ValueError):
    """A request that is refused; the message names the tensor, the value, the limit and what to do."""


class DeadlineExceeded(Exception):
    """The request's deadline has passed: an answer would come too late, and what was computed for it is given up."""


class Overloaded(Exception):
    """So many requests wait that this one could not be answered in time; the message has TOO_MANY in it."""


class StaleVersion(Exception):
    """The request was prepared with another catalogue than this step has."""


class Cancelled(Exception):
    """Nobody waits for the request any more; what was computed for it is given up."""


class DataError(ValueError):
    """Input data that cannot be used; the message names the file, the place, the value and what to do."""


class CatalogStoreError(ValueError):
    """A live catalogue that cannot be opened, read or written; the message names its location and what to do."""


class CatalogConflict(CatalogStoreError):
    """Somebody else wrote the version that was to be written; nothing of this one was applied."""


def shown(value: object) -> str:
    """A value of somebody else's in a message, in one line of at most 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of integers that are too long, and what is nested too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def in_words(error: BaseException) -> str:
    """What was raised while a file was taken apart, in one line and without the name of the exception's class."""
    if isinstance(error, KeyError) and error.args:
        return f"has no {shown(error.args[0])}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:400] or "it cannot be read"
