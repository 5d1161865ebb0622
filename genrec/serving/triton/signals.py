"""Signal handlers for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def signal_handlers(signals: Sequence[signal.Signals], handler: object) -> Iterator[None]:
    """Handles `signals` within the block; does nothing outside the main thread, the only one where Python allows it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
