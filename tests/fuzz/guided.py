"""Coverage-guided inputs: atheris changes the bytes that choices are made of, and keeps what reaches new code.

It finds what random choices are unlikely to, and is a tenth as fast. `pip install atheris` first.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from tests.fuzz.runner import Result, Target, feed_one, limits


class Choices(random.Random):
    """Random numbers that are read from bytes; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        part = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part, "big") >> (8 * size - k) if len(part) == size else 0

    def random(self) -> float:
        return self.getrandbits(53) / 2**53


def guide(target: Target, scratch: Path, inputs: int, seconds: float) -> None:
    """Feed a target until it has had its inputs or its time; says what came of it and ends the process.

    The modules that are to be covered have to be imported within `atheris.instrument_imports`.
    """
    import atheris

    result, began = Result(target.name), time.monotonic()
    (scratch / "outside").mkdir()
    with target.open(scratch) as feed, limits():

        def one(data: bytes) -> None:
            feed_one(target, feed, Choices(data), data.hex(), result, scratch / "outside")
            result.seconds = time.monotonic() - began
            if result.inputs >= inputs or result.seconds > seconds:
                print("\n".join(result.lines()), flush=True)
                os._exit(1 if result.findings else 0)

        atheris.Setup([sys.argv[0], "-max_len=2048", "-len_control=0", "-print_funcs=0", "-verbosity=0"], one)
        atheris.Fuzz()
