"""The client: asks one of several servers, and another one when that fails."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import grpc

from genrec_client.base import BaseRecommender, Readiness
from genrec_client.call import Call
from genrec_client.errors import RecommendError
from genrec_client.recommendations import Recommendations
from genrec_client.request import RecommendRequest


class Recommender(BaseRecommender[Recommendations, list[Recommendations | RecommendError], list[Recommendations]]):
    """Asks for recommendations. Thread-safe; one for each process is enough.

    Args:
        urls: addresses of the servers' gRPC port ("host:8001"), as a list or with commas between them. Calls go round
            them in turn. A name that resolves to several addresses is one url, and gRPC spreads its calls over them.
        model: name of the model.
        timeout_s: seconds that a call may take with all its attempts, unless the call says otherwise.
        retry: when and how often to try again.
        tls: True for TLS with the system's certificates, or the files to use.
        token: sent with every request as `authorization: Bearer`; use TLS with it.
        metadata: gRPC metadata (headers) sent with every request, keys in lower case.
        channel_options: gRPC channel arguments, which go before the client's own choices.
        tracing: make an OpenTelemetry span of every call, a child of the caller's current one, and carry it to the
            server. Needs the extra `tracing`.

    Raises:
        ValueError: an address or a number that cannot be used.
        OSError: a TLS file that cannot be read.
        ImportError: tracing without OpenTelemetry.
    """

    def _prepare(self) -> None:
        self._connect(grpc)

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls that are still under way end in RecommendError with code CANCELLED."""
        self._context.closed.set()
        for channel in self._channels:
            channel.close()

    def _answer(self, request: RecommendRequest, timeout_s: float | None) -> Recommendations:
        call = self._call(request, timeout_s)
        while True:
            address, remaining_s = call.begin_attempt()
            try:
                response = self._stubs[address].ModelInfer(call.message, timeout=remaining_s, metadata=call.metadata)
            except grpc.RpcError as error:
                # `from None`: the message is kept, and gRPC's own trace tells nothing more.
                try:
                    delay_s = call.fail(error.code().name, error.details() or "")
                except RecommendError as ended:
                    raise ended from None
                self._context.closed.wait(delay_s)
            else:
                return call.succeed(response)

    def _answer_many(
        self, requests: Iterable[RecommendRequest], concurrency: int, timeout_s: float | None, return_exceptions: bool
    ) -> list[Any]:
        def send(call: Call) -> Any:
            address, remaining_s = call.begin_attempt()
            return self._stubs[address].ModelInfer.future(call.message, timeout=remaining_s, metadata=call.metadata)

        batch = _Batch(lambda request: self._call(request, timeout_s), send, concurrency, return_exceptions)
        return batch.answer(requests)

    def readiness(self, timeout_s: float | None = None) -> tuple[Readiness, ...]:
        """Whether each address has the model ready, in the order of the urls. It does not raise for a server's error.

        Args:
            timeout_s: seconds for each address.
        """
        request, timeout_s = self._ready_request(timeout_s)
        found = []
        for url, stub in zip(self._context.urls, self._stubs, strict=True):
            try:
                response = stub.ModelReady(request, timeout=timeout_s, metadata=self._context.metadata)
                found.append(self._readiness_of(url, "OK", "", response))
            except grpc.RpcError as error:
                found.append(self._readiness_of(url, error.code().name, error.details() or "", None))
        return tuple(found)


class _Batch:
    """The calls of one `recommend_many`, driven by the thread that waits for it.

    prepare: makes a request's call. send: begins an attempt of a call and returns its gRPC future. Both may raise
    RecommendError, which ends the call. A call is known by its index, the place of its request.
    """

    def __init__(
        self,
        prepare: Callable[[RecommendRequest], Call],
        send: Callable[[Call], Any],
        concurrency: int,
        return_exceptions: bool,
    ) -> None:
        self._prepare, self._send = prepare, send
        self._concurrency, self._return_exceptions = concurrency, return_exceptions
        self._more = True  # requests to come
        self._results: list[Any] = []
        self._calls: dict[int, Call] = {}  # under way: sent, or waiting for their next attempt
        self._futures: dict[int, Any] = {}
        self._waiting: list[tuple[float, int]] = []  # a heap: when the next attempt is due
        self._finished: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def answer(self, requests: Iterable[RecommendRequest]) -> list[Any]:
        """The answer or error of each request."""
        source = iter(requests)
        try:
            while self._more or self._calls:
                self._fill(source)
                self._retry_due()
                if self._calls:
                    self._receive_next()
        finally:
            self._abandon()
        return self._results

    def _fill(self, source: Iterator[RecommendRequest]) -> None:
        """Begins calls while there is room."""
        while self._more and len(self._calls) < self._concurrency:
            try:
                request = next(source)
            except StopIteration:
                self._more = False
                return
            index = len(self._results)
            self._results.append(None)
            try:
                self._calls[index] = self._prepare(request)
            except RecommendError as error:
                self._end(index, error)
            else:
                self._attempt(index)

    def _attempt(self, index: int) -> None:
        try:
            future = self._send(self._calls[index])
        except RecommendError as error:
            self._end(index, error)
            return
        self._futures[index] = future
        # Runs in gRPC's thread, so it only passes the news on; this thread does the rest.
        future.add_done_callback(lambda done: self._finished.put((index, done)))

    def _retry_due(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            self._attempt(heapq.heappop(self._waiting)[1])

    def _receive_next(self) -> None:
        """Waits for the end of an attempt, or until another one is due."""
        pause_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
        try:
            index, future = self._finished.get(timeout=pause_s)
        except queue.Empty:
            return
        del self._futures[index]
        call = self._calls[index]
        try:
            if future.code() is grpc.StatusCode.OK:
                self._end(index, call.succeed(future.result()))
                return
            delay_s = call.fail(future.code().name, future.details() or "")
        except RecommendError as error:
            self._end(index, error)
        else:
            heapq.heappush(self._waiting, (time.monotonic() + delay_s, index))

    def _end(self, index: int, result: Recommendations | RecommendError) -> None:
        self._calls.pop(index, None)
        if isinstance(result, RecommendError) and not self._return_exceptions:
            raise result
        self._results[index] = result

    def _abandon(self) -> None:
        """Gives up what is still under way, if anything is."""
        for future in self._futures.values():
            future.cancel()
        for call in self._calls.values():
            call.abandon()
