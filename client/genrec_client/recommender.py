"""The client: asks one of several servers, and another one when that fails."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import heapq
import queue
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, overload

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from genrec_client import wire
from genrec_client.addresses import AddressPool
from genrec_client.call import Call, CallContext
from genrec_client.channel import TlsOptions, open_channel, split_urls
from genrec_client.errors import RecommendError
from genrec_client.recommendations import Recommendations
from genrec_client.request import ItemId, RecommendRequest
from genrec_client.retry import RetryBudget, RetryPolicy
from genrec_client.statistics import Counters, Statistics


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether one address would serve requests; `message` says why not."""

    url: str
    ready: bool
    message: str = ""


class Recommender:
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
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        model: str = "recommend",
        timeout_s: float = 1.0,
        retry: RetryPolicy | None = None,
        tls: bool | TlsOptions = False,
        metadata: Sequence[tuple[str, str]] = (),
        channel_options: Sequence[tuple[str, object]] = (),
    ) -> None:
        if not 0 < timeout_s < 1e6:
            raise ValueError(f"timeout_s is {timeout_s}; give seconds above 0")
        policy = retry or RetryPolicy()
        addresses = split_urls(urls)
        self._model = model
        self._timeout_s = timeout_s
        self._metadata = tuple(metadata)
        self._context = CallContext(
            addresses,
            AddressPool(len(addresses), policy.cool_down_s),
            policy,
            RetryBudget(policy.budget_ratio, policy.budget_reserve, policy.budget_capacity),
            Counters(),
        )
        self._closed = False
        self._channels = [open_channel(url, tls, channel_options) for url in addresses]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls that are still under way end in RecommendError with code CANCELLED."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    @property
    def statistics(self) -> Statistics:
        """Counts since this client was made."""
        return self._context.counters.snapshot()

    def recommend(
        self,
        history: Iterable[ItemId],
        *,
        top_k: int | None = None,
        exclude: Iterable[ItemId] | None = None,
        allow_history: bool | None = None,
        query: str | None = None,
        timeout_s: float | None = None,
    ) -> Recommendations:
        """Recommend items to one user.

        Args:
            history: item ids, oldest first; may be empty.
            top_k: items wanted (default: the bundle's).
            exclude: item ids never to return.
            allow_history: whether items of the history may come back (default: no).
            query: text query, for bundles that were trained with one.
            timeout_s: seconds for the call with all its attempts.

        Raises:
            InvalidRequest: the request is wrong, by this client's or the server's judgement.
            Overloaded: the server's queue is full.
            Unavailable: no address could answer.
            DeadlineExceeded: the time ran out.
            RecommendError: anything else, such as an error inside the server.
        """
        call = self._call(RecommendRequest(history, top_k, exclude, allow_history, query), timeout_s)
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
                if delay_s:
                    time.sleep(delay_s)
            else:
                return call.succeed(response)

    @overload
    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        return_exceptions: Literal[True] = ...,
    ) -> list[Recommendations | RecommendError]: ...

    @overload
    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        return_exceptions: Literal[False],
    ) -> list[Recommendations]: ...

    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = 32,
        timeout_s: float | None = None,
        return_exceptions: bool = True,
    ) -> list[Recommendations | RecommendError] | list[Recommendations]:
        """Recommend items to many users, as concurrent requests of one user each; the server forms the batches.

        Args:
            requests: one for each user; drawn only as fast as they are sent.
            concurrency: requests under way at once. Above what the server's queue holds, it refuses some.
            timeout_s: seconds for each user's call, from its own first attempt.
            return_exceptions: True returns a user's error in the place of the answer; False raises the first one
                that happens, and cancels what is under way.

        Returns:
            One element for each request, in their order.

        Raises:
            RecommendError: as `recommend` does, only without `return_exceptions`.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
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
        return results

    def readiness(self, timeout_s: float | None = None) -> tuple[Readiness, ...]:
        """Whether each address has the model ready, in the order of the urls. It does not raise for a server's error.

        Args:
            timeout_s: seconds for each address.
        """
        self._check_open()
        request = service_pb2.ModelReadyRequest(name=self._model)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        found = []
        for url, stub in zip(self._context.urls, self._stubs, strict=True):
            try:
                ready = bool(stub.ModelReady(request, timeout=timeout_s, metadata=self._metadata).ready)
                found.append(Readiness(url, ready, "" if ready else f"model {self._model!r} is not ready"))
            except grpc.RpcError as error:
                found.append(Readiness(url, False, f"{error.code().name}: {error.details()}"))
        return tuple(found)

    def _call(self, request: RecommendRequest, timeout_s: float | None) -> Call:
        self._check_open()
        message = wire.build_request(request, self._model)
        return Call(self._context, message, self._timeout_s if timeout_s is None else timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Recommender is closed")
