"""Writes knowledge texts for whoever waits: one thread steps a decoding session, requests come and go between steps."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from genrec.errors import TOO_MANY, InvalidRequest
from genrec.knowledge.decoder import Session, SpeculativeDecoder, TextProgress, TextRequest

MAX_WAITING = 1024
Reason = Literal["refused", "overloaded", "cancelled", "failed"]


class Stream(Protocol):
    """The requester of one text. The last call is `fail`, or `write` with `last`; never two at a time."""

    def cancelled(self) -> bool:
        """Whether nobody waits any more."""

    def write(self, text: str, tokens: int, last: bool) -> None:
        """The next piece of the text, and how many tokens it has by now."""

    def fail(self, message: str, reason: Reason) -> None:
        """No text, or no more of it."""


@dataclass
class _Running:
    stream: Stream
    parts: list[np.ndarray] = field(default_factory=list)
    sent: int = 0  # characters


class TextWriter:
    """Decodes all submitted requests together, in a thread of its own.

    decoder: what decodes. text: the text of tokens, int [n]. log: where a defect is reported.
    """

    def __init__(
        self, decoder: SpeculativeDecoder, text: Callable[[np.ndarray], str], log: Callable[[str], object]
    ) -> None:
        self._decoder, self._text, self._log = decoder, text, log
        self._arrived: queue.Queue[tuple[TextRequest, Stream] | None] = queue.Queue(MAX_WAITING)
        self._running: dict[int, _Running] = {}
        self._thread = threading.Thread(target=self._run, name="text-writer", daemon=True)
        self._thread.start()

    def submit(self, request: TextRequest, stream: Stream) -> None:
        """Queue a request; its stream hears of everything else. Safe from any thread."""
        try:
            self._arrived.put_nowait((request, stream))
        except queue.Full:
            stream.fail(f"{MAX_WAITING} texts are waiting: {TOO_MANY}; send fewer at once", "overloaded")

    def close(self) -> None:
        """Finish what is under way, then end the thread."""
        self._arrived.put(None)
        self._thread.join()

    def _run(self) -> None:
        session, open_ = self._decoder.session(), True
        while open_ or session.pending:
            open_ = self._take(session, open_)
            for index in [index for index, running in self._running.items() if running.stream.cancelled()]:
                session.cancel(index)
                self._running.pop(index).stream.fail("cancelled", "cancelled")
            if not session.pending:
                continue
            try:
                for progress in session.step():
                    self._report(progress)
            except Exception:  # a defect: these texts fail, the next ones may not
                self._log(traceback.format_exc())
                for running in self._running.values():
                    running.stream.fail("internal error, see the server's log", "failed")
                self._running.clear()
                session = self._decoder.session()

    def _take(self, session: Session, open_: bool) -> bool:
        """Submit what there is room for; wait for something if there is nothing to do. False once closed."""
        while open_ and session.pending < self._decoder.batch_size:
            try:
                arrived = self._arrived.get(block=not session.pending)
            except queue.Empty:
                return True
            if arrived is None:
                return False
            request, stream = arrived
            try:
                self._running[session.submit(request)] = _Running(stream)
            except InvalidRequest as error:
                stream.fail(str(error), "refused")
        return open_

    def _report(self, progress: TextProgress) -> None:
        running = self._running[progress.index]
        running.parts.append(progress.tokens)
        tokens = np.concatenate(running.parts)
        text = self._text(tokens)
        last = progress.finished is not None
        if last:
            del self._running[progress.index]
        if last or len(text) > running.sent:
            running.stream.write(text[running.sent :], tokens.size, last)
            running.sent = len(text)
