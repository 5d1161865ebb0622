"""The client: asks one of several servers, and another one when that fails."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Iterable
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
        metadata: gRPC metadata (headers) sent with every request, keys in lower case.
        channel_options: gRPC channel arguments, which go before the client's own choices.

    Raises:
        ValueError: an address or a number that cannot be used.
        OSError: a TLS file that cannot be read.
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
                response = self._stubs[address].ModelInfer(call.message, timeout=remaining_s, metadata=self._metadata)
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
        results: list[Any] = []
        finished: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        calls: dict[int, Call] = {}
        futures: dict[int, Any] = {}
        waiting: list[tuple[float, int]] = []

        def end(index: int, result: Recommendations | RecommendError) -> None:
            calls.pop(index, None)
            if isinstance(result, RecommendError) and not return_exceptions:
                raise result
            results[index] = result

        def send(index: int) -> None:
            call = calls[index]
            try:
                address, remaining_s = call.begin_attempt()
            except RecommendError as error:
                end(index, error)
                return
            future = self._stubs[address].ModelInfer.future(call.message, timeout=remaining_s, metadata=self._metadata)
            futures[index] = future
            # Runs in gRPC's thread, so it only passes the news on; this thread does the rest.
            future.add_done_callback(lambda done: finished.put((index, done)))

        def receive(index: int, future: Any) -> None:
            del futures[index]
            try:
                if future.code() is grpc.StatusCode.OK:
                    end(index, calls[index].succeed(future.result()))
                    return
                delay_s = calls[index].fail(future.code().name, future.details() or "")
            except RecommendError as error:
                end(index, error)
            else:
                heapq.heappush(waiting, (time.monotonic() + delay_s, index))

        source = iter(requests)
        more = True
        try:
            while more or calls:
                while more and len(calls) < concurrency:
                    try:
                        request = next(source)
                    except StopIteration:
                        more = False
                        break
                    index = len(results)
                    results.append(None)
                    try:
                        calls[index] = self._call(request, timeout_s)
                    except RecommendError as error:
                        end(index, error)
                    else:
                        send(index)
                while waiting and waiting[0][0] <= time.monotonic():
                    send(heapq.heappop(waiting)[1])
                if calls:
                    pause_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
                    try:
                        index, future = finished.get(timeout=pause_s)
                    except queue.Empty:
                        continue
                    receive(index, future)
        finally:
            for future in futures.values():
                future.cancel()
            for call in calls.values():
                call.abandon()
        return results

    def readiness(self, timeout_s: float | None = None) -> tuple[Readiness, ...]:
        """Whether each address has the model ready, in the order of the urls. It does not raise for a server's error.

        Args:
            timeout_s: seconds for each address.
        """
        request = self._ready_request()
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        found = []
        for url, stub in zip(self._context.urls, self._stubs, strict=True):
            try:
                response = stub.ModelReady(request, timeout=timeout_s, metadata=self._metadata)
                found.append(self._readiness_of(url, "OK", "", response))
            except grpc.RpcError as error:
                found.append(self._readiness_of(url, error.code().name, error.details() or "", None))
        return tuple(found)
