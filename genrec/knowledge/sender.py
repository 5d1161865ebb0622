"""Sends texts to whoever waits for them, in a thread of its own: decoding goes on meanwhile.

No other thread speaks to a requester: while one sends, Triton 2.51 ends if another asks whether somebody still waits,
and when a text is asked about whose last piece was sent.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

import numpy as np

from genrec.knowledge.detokenizer import Detokenizer

Reason = Literal["refused", "overloaded", "cancelled", "failed"]

# What is sent takes processor time from decoding. So the thread rests so many times as long as it took to send, and the
# more texts are written, the larger their pieces get. No piece waits longer than _DELAY_S, and the first not at all.
_REST, _DELAY_S = 10, 0.1
_ASK_REST, _ASK_S = 30, 0.5  # likewise for asking who still waits


class Stream(Protocol):
    """The requester of one text. The last call is `fail`, or `write` with `last`; never two at a time."""

    def cancelled(self) -> bool:
        """Whether nobody waits any more."""

    def write(self, text: str, tokens: int, last: bool) -> None:
        """The next piece of the text, and how many tokens it has by now."""

    def fail(self, message: str, reason: Reason) -> None:
        """No text, or no more of it."""


@dataclass(eq=False)
class Outgoing:
    """A text on its way to its requester.

    whole: it is sent in one piece, once it is finished. unsent: its tokens that are not sent; sent: how many are.
    finished: nothing more comes; failure: because of this. cancelled: nobody waits for it, so it need not be finished.
    """

    stream: Stream
    whole: bool
    detokenizer: Detokenizer
    unsent: list[np.ndarray] = field(default_factory=list)
    sent: int = 0
    finished: bool = False
    failure: tuple[str, Reason] | None = None
    cancelled: bool = False

    @property
    def waits(self) -> bool:
        """Whether there is a piece to send before the text is finished."""
        return bool(self.unsent) and not self.whole and not self.cancelled


class TextSender:
    """Sends pieces of texts in order, and asks now and then who still waits.

    decode: of `Detokenizer`. log: where a defect is reported. room: finished texts that may wait to be sent.
    """

    def __init__(self, decode: Callable[[np.ndarray], str], log: Callable[[str], object], room: int) -> None:
        self._decode, self._log, self._room = decode, log, room
        self._changed = threading.Condition()
        self._texts: list[Outgoing] = []
        self._closed = False
        self._send_at = self._ask_at = 0.0
        self._thread = threading.Thread(target=self._run, name="text-sender", daemon=True)
        self._thread.start()

    def open(self, stream: Stream, whole: bool) -> Outgoing:
        """A text that is being written from now on."""
        text = Outgoing(stream, whole, Detokenizer(self._decode))
        with self._changed:
            self._texts.append(text)
            self._changed.notify_all()
        return text

    def add(self, written: Iterable[tuple[Outgoing, np.ndarray, bool]]) -> None:
        """Send new tokens, int32 [n], of texts, and whether they are finished. Waits while there is no room."""
        with self._changed:
            for text, tokens, finished in written:
                text.unsent.append(tokens)
                text.finished = finished
            self._changed.notify_all()
            self._changed.wait_for(lambda: sum(text.finished for text in self._texts) <= self._room)

    def fail(self, texts: Iterable[Outgoing], message: str, reason: Reason) -> None:
        """End `texts` without what is not sent yet."""
        with self._changed:
            for text in texts:
                text.finished, text.failure = True, (message, reason)
            self._changed.notify_all()

    def close(self) -> None:
        """Send what is finished, then end the thread; nothing may be opened any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = monotonic()
                all_due, ask = now >= self._send_at, now >= self._ask_at
                due = [
                    # As it is now: what ends it meanwhile is sent next time, and once.
                    (text, self._taken(text), text.finished, text.failure)
                    for text in self._texts
                    if text.finished or (text.waits and (all_due or not text.sent))
                ]
                running = [text for text in self._texts if not text.finished and not text.cancelled] if ask else []
                if not due and not running:
                    if self._closed and not self._texts:
                        return
                    self._changed.wait(self._idle_s(now))
                    continue
            for text, tokens, finished, failure in due:
                self._send(text, tokens, finished, failure)
            sent = monotonic()
            for text in running:
                self._ask(text)
            gone = {text for text, _, finished, _ in due if finished}
            with self._changed:
                self._texts = [text for text in self._texts if text not in gone]
                self._changed.notify_all()
            if all_due:
                self._send_at = sent + min(_REST * (sent - now), _DELAY_S)
            if running:
                asked = monotonic()
                self._ask_at = asked + min(_ASK_REST * (asked - sent), _ASK_S)

    def _idle_s(self, now: float) -> float | None:
        """Seconds until something is to be done if nothing changes."""
        times = [self._send_at] if any(text.waits for text in self._texts) else []
        times += [self._ask_at] if any(not text.cancelled for text in self._texts) else []
        return max(0.0, min(times) - now) if times else None

    @staticmethod
    def _taken(text: Outgoing) -> np.ndarray:
        tokens = np.concatenate(text.unsent) if text.unsent else np.empty(0, np.int32)
        text.unsent.clear()
        text.sent += tokens.size
        return tokens

    def _send(self, text: Outgoing, tokens: np.ndarray, last: bool, failure: tuple[str, Reason] | None) -> None:
        try:
            if failure is not None:
                text.stream.fail(*failure)
                return
            piece = text.detokenizer.add(tokens)
            if piece or last:
                text.stream.write(piece, text.sent, last)
        except Exception:  # a defect, or the requester is gone in a way that is an error: only this text ends
            self._log(traceback.format_exc())
            text.cancelled = True

    def _ask(self, text: Outgoing) -> None:
        try:
            text.cancelled = text.cancelled or text.stream.cancelled()
        except Exception:
            self._log(traceback.format_exc())
            text.cancelled = True
