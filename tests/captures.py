"""A capture of recorded drafts for where there are no CUDA graphs."""

from __future__ import annotations

from genrec.engines.graphs import Call, call_again


class Counting:
    """Records nothing, as `call_again`, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, call: Call) -> Call:
        self.recordings += 1
        return call_again(call)
