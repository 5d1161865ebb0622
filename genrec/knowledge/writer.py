"""Writes knowledge texts for whoever waits: one thread steps a decoding session, requests come and go between steps."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from genrec.errors import TOO_MANY, InvalidRequest
from genrec.knowledge.decoder import Session, SpeculativeDecoder
from genrec.knowledge.sender import Outgoing, Stream, TextSender
from genrec.knowledge.texts import TextRequest

MAX_WAITING = 1024


class _Arrived(NamedTuple):
    request: TextRequest
    text: Outgoing


class TextWriter:
    """Decodes all submitted requests together, in a thread of its own.

    made: the decoder; it is made in that thread, and nothing of PyTorch runs in another one. OpenMP has a pool of
    threads for each thread that computes, and with more of them than processors it no longer waits in a loop for the
    next operation: decoding is then a third slower. decode: the text of tokens, int [n], see `Detokenizer`. log: where
    a defect is reported. Raises what `made` raises.
    """

    def __init__(
        self,
        made: Callable[[], SpeculativeDecoder],
        decode: Callable[[np.ndarray], str],
        log: Callable[[str], object],
    ) -> None:
        self._decode, self._log = decode, log
        self._arrived: queue.Queue[_Arrived | None] = queue.Queue(MAX_WAITING)
        self._running: dict[int, Outgoing] = {}
        begun: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(made, begun), name="text-writer", daemon=True)
        self._thread.start()
        begun.result()

    def submit(self, request: TextRequest, stream: Stream, whole: bool = False) -> None:
        """Queue a request; its stream hears of everything else. Safe from any thread.

        whole: whether the text is sent in one piece, which costs less than several.
        """
        text = self._sender.open(stream, whole)
        try:
            self._arrived.put_nowait(_Arrived(request, text))
        except queue.Full:
            message = f"{MAX_WAITING} texts are waiting: {TOO_MANY}; send fewer at once"
            self._sender.fail([text], message, "overloaded")

    def refuse(self, stream: Stream, message: str) -> None:
        """Tell a stream that there will be no text. Safe from any thread."""
        self._sender.fail([self._sender.open(stream, whole=True)], message, "refused")

    def close(self) -> None:
        """Finish and send what is under way, then end the threads."""
        self._arrived.put(None)
        self._thread.join()
        self._sender.close()

    def _run(self, made: Callable[[], SpeculativeDecoder], begun: Future[None]) -> None:
        try:
            self._decoder = made()
        except BaseException as error:  # of whoever asked for it
            begun.set_exception(error)
            return
        self._sender = TextSender(self._decode, self._log, room=self._decoder.batch_size)
        begun.set_result(None)
        session, open_ = self._decoder.session(), True
        while open_ or session.pending:
            open_ = self._take(session, open_)
            for index in [index for index, text in self._running.items() if text.cancelled]:
                session.cancel(index)
                self._sender.fail([self._running.pop(index)], "cancelled", "cancelled")
            if not session.pending:
                continue
            try:
                progress = session.step()
            except Exception:  # a defect: these texts fail, the next ones may not
                self._log(traceback.format_exc())
                self._sender.fail(self._running.values(), "internal error, see the server's log", "failed")
                self._running.clear()
                session = self._decoder.session()
                continue
            self._sender.add((self._running[one.index], one.tokens, one.finished is not None) for one in progress)
            for one in progress:
                if one.finished:
                    del self._running[one.index]

    def _take(self, session: Session, open_: bool) -> bool:
        """Submit what there is room for; wait for something if there is nothing to do. False once closed."""
        while open_ and session.pending < self._decoder.batch_size:
            try:
                arrived = self._arrived.get(block=not session.pending)
            except queue.Empty:
                return True
            if arrived is None:
                return False
            if arrived.text.cancelled:
                self._sender.fail([arrived.text], "cancelled", "cancelled")
                continue
            try:
                index = session.submit(arrived.request)
            except InvalidRequest as error:
                self._sender.fail([arrived.text], str(error), "refused")
            else:
                self._running[index] = arrived.text
        return open_
