"""Progress on the terminal: a bar with time left where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Task = Callable[[int, int, str], None]  # (done, total, note)
Track = Callable[[str], AbstractContextManager[Task]]  # a titled progress bar

console = Console(stderr=True)
_LINE_EVERY_S = 15.0


@contextmanager
def untracked(title: str) -> Iterator[Task]:
    """A `Track` that shows nothing."""
    yield lambda done, total, note: None


@contextmanager
def track(title: str) -> Iterator[Task]:
    """A titled task; call what it yields with (done, total, note)."""
    started = time.monotonic()
    if console.is_terminal:
        columns = ("{task.description}", BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.fields[note]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            number = bar.add_task(title, total=None, note="")
            yield lambda done, total, note: bar.update(number, completed=done, total=total, note=note)
            bar.update(number, completed=1, total=1, note="")
        return
    console.print(f"{title} ...")
    last = started

    def line(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            left = (now - started) / max(1, done) * (total - done)
            console.print(f"{title}: {done}/{total} {note}, {left:.0f} s left")

    yield line
    console.print(f"{title}: done in {time.monotonic() - started:.1f} s")
