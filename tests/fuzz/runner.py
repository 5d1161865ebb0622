"""Feeds targets with hostile inputs, and says what is wrong with how they take them.

A target is given one input after the other, each made of a seed of its own, so that a finding can be repeated. Findings
are: an error that is none of the project's, or whose message says too little or too much; more time or memory than an
input may take; a file read that the input has no business with.
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

Feed = Callable[[random.Random], None]

LONGEST_S = 5.0  # of a processor, for one input: a hang for whoever waits
_WAITS = 6  # times as long it may take while others have the processor
MOST_BYTES = 1 << 30  # of address space, beyond what the process had before
LONGEST_LINE, MOST_LINES = 2000, 110  # of a message: a hostile file must not fill the log
_STUCK_S = 120  # in code that no signal reaches
_MOST_KEPT = 20  # findings that are told whole


class Finding(Exception):
    """What a target found itself, such as a request that passed and must not."""


class TooSlow(BaseException):
    """An input took longer than it may. No `Exception`: what is tested must not take it for an error of its own."""


@dataclass(frozen=True)
class Target:
    """Something that takes hostile input.

    open: gives what feeds one input, made by a `random.Random`; it returns where the input is taken, raises one of
    `refusals` where it is refused, and everything else is a finding. share: of all inputs, relative to other targets'.
    says: a pattern that every refusal's message has. needs: why the target cannot run here, "" if it can.
    """

    name: str
    open: Callable[[Path], AbstractContextManager[Feed]]
    refusals: tuple[type[BaseException], ...]
    share: float = 1.0
    says: str = r"\w"
    needs: str = ""


@dataclass
class Result:
    """What came of a target's inputs. findings: what went wrong, by its kind, and the first seed of each."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[str, str]] = field(default_factory=dict)

    def found(self, kind: str, seed: str, details: str) -> None:
        self.findings[kind] += 1
        if len(self.first) < _MOST_KEPT:
            self.first.setdefault(kind, (seed, details))

    def lines(self) -> Iterator[str]:
        rate = self.inputs / max(self.seconds, 1e-9)
        yield (
            f"{self.target:<20} {self.inputs:>9,} inputs {self.refused:>9,} refused {self.seconds:>7.1f} s "
            f"{rate:>9,.0f}/s {sum(self.findings.values()):>6,} findings"
        )
        for kind, (seed, details) in self.first.items():
            yield f"    {self.findings[kind]} x {kind}"
            yield f"    again: python -m tests.fuzz --target {self.target} --seed {seed}"
            yield from (f"      {line}" for line in details.rstrip().splitlines()[-12:])


class Watch:
    """Notes files that are opened outside of what an input may name. There is one for each process."""

    def __init__(self) -> None:
        self._forbidden: tuple[str, ...] = ()
        self.opened: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, *forbidden: Path) -> Iterator[None]:
        """While the block runs, whatever lies in one of these folders must not be opened."""
        self._forbidden = tuple(os.path.realpath(path) for path in forbidden)
        try:
            yield
        finally:
            self._forbidden = ()

    def _hook(self, event: str, arguments: tuple) -> None:
        if event != "open" or not self._forbidden or not isinstance(arguments[0], (str, bytes)):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(self._forbidden):
            self.opened.append(path)


_watches: list[Watch] = []
_armed: list[bool] = []  # whether an input is being fed


def the_watch() -> Watch:
    """The process's watch, made when it is first asked for: a hook cannot be taken back."""
    if not _watches:
        _watches.append(Watch())
    return _watches[0]


@contextmanager
def limited_memory(most: int) -> Iterator[None]:
    """While the block runs, the process gets no more than `most` bytes beyond what it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def limits() -> Iterator[None]:
    """While the block runs, `feed_one` can tell what takes too long, and the process gets no more memory."""

    def late(number: int, frame: FrameType | None) -> None:
        if _armed:  # both may come, one behind the other
            _armed.clear()
            raise TooSlow

    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        with limited_memory(MOST_BYTES):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        faulthandler.cancel_dump_traceback_later()


def run(
    target: Target, scratch: Path, inputs: int, seconds: float, base: str, seeds: list[str] | None = None
) -> Result:
    """Feed a target.

    scratch: a folder for its files; `outside` in it must not be read. inputs, seconds: where it ends. base: of the
    seeds, `BASE-NUMBER`. seeds: these alone instead.
    """
    result = Result(target.name)
    outside = scratch / "outside"
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "secret").write_bytes(b"secret")
    with target.open(scratch) as feed, limits():
        began = time.monotonic()
        for number in range(len(seeds) if seeds else inputs):
            if number % 256 == 0 and time.monotonic() - began > seconds:
                break
            seed = seeds[number] if seeds else f"{base}-{number}"
            feed_one(target, feed, random.Random(seed), seed, result, outside)
        result.seconds = time.monotonic() - began
    return result


def feed_one(target: Target, feed: Feed, rng: random.Random, seed: str, result: Result, outside: Path) -> None:
    """Feed one input, and note what came of it under its seed."""
    watch = the_watch()
    if result.inputs % 256 == 0:
        faulthandler.dump_traceback_later(_STUCK_S, exit=True)
    watch.opened.clear()
    with watch.over(outside, Path("/etc/passwd")):
        _feed(target, feed, rng, seed, result)
    result.inputs += 1
    if watch.opened:
        result.found("a file outside was read", seed, watch.opened[0])


def _feed(target: Target, feed: Feed, rng: random.Random, seed: str, result: Result) -> None:
    _armed.append(True)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    signal.setitimer(signal.ITIMER_REAL, _WAITS * LONGEST_S)
    try:
        feed(rng)
    except target.refusals as error:
        result.refused += 1
        if problem := _unclear(str(error), target.says):
            result.found(problem, seed, str(error)[:500])
    except Finding as error:
        result.found(f"Finding: {str(error).partition(':')[0]}", seed, str(error)[:2000])
    except TooSlow:
        result.found(f"longer than {LONGEST_S:g} s", seed, traceback.format_exc())
    except MemoryError:
        result.found(f"more than {MOST_BYTES >> 20} MiB", seed, traceback.format_exc())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.found(
            f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}", seed, traceback.format_exc()
        )
    finally:
        _armed.clear()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _unclear(message: str, says: str) -> str:
    """What is wrong with the message of a refusal, "" if nothing is."""
    if not re.search(says, message):
        return f"a message without {says!r}"
    lines = message.split("\n")
    if len(lines) > MOST_LINES or max(map(len, lines)) > LONGEST_LINE:
        return f"a message of more than {MOST_LINES} lines or {LONGEST_LINE} characters in one"
    return ""
