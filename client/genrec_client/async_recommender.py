"""The client for asyncio: as `Recommender`, but it waits without holding a thread."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from grpc import aio

from genrec_client.base import BaseRecommender, Readiness
from genrec_client.errors import RecommendError
from genrec_client.recommendations import Recommendations
from genrec_client.request import RecommendRequest

_Answer: TypeAlias = Coroutine[Any, Any, Recommendations]
_AnswersOrErrors: TypeAlias = Coroutine[Any, Any, list[Recommendations | RecommendError]]
_Answers: TypeAlias = Coroutine[Any, Any, list[Recommendations]]
# Status name, status message, and the response if the status is OK.
_Outcome: TypeAlias = tuple[str, str, Any]

_CLOSED: _Outcome = ("CANCELLED", "the client was closed", None)


def _coroutine_function(method: Callable[..., Any]) -> Any:
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    return call


class AsyncRecommender(BaseRecommender[_Answer, _AnswersOrErrors, _Answers]):
    """`Recommender` for asyncio: same arguments, answers, errors and counts; `recommend` and the others are awaited.

    One for each event loop is enough: it belongs to the loop that it is first used in, and may be made before that loop
    runs. Cancelling a task that waits in it cancels the request too, and counts it as cancelled, not as failed.

    `recommend_many` draws its requests in the event loop, so their iterable must not take long for the next one.

    Raises ValueError for an address or a number that cannot be used, OSError for a TLS file that cannot be read, and in
    `async with` or a call RuntimeError once it is closed, or in another event loop than its own.
    """

    def _prepare(self) -> None:
        # gRPC binds a channel to the running loop, and there may be none yet.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> AsyncRecommender:
        self._ensure_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that are still under way end in RecommendError with code CANCELLED."""
        self._check_loop()
        self._context.closed.set()
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)
        for channel in self._channels:
            await channel.close()

    if not TYPE_CHECKING:
        # They return coroutines anyway. Frameworks and AsyncMock(spec=...) look for methods that say so.
        recommend = _coroutine_function(BaseRecommender.recommend)
        recommend_many = _coroutine_function(BaseRecommender.recommend_many)

    async def readiness(self, timeout_s: float | None = None) -> tuple[Readiness, ...]:
        """As `Recommender.readiness`, but all addresses are asked at the same time."""
        request, limit_s = self._ready_request(timeout_s)

        async def ask(url: str, stub: Any) -> Readiness:
            return self._readiness_of(url, *await self._send(stub.ModelReady, request, limit_s, self._context.metadata))

        return tuple(await asyncio.gather(*map(ask, self._context.urls, self._stubs)))

    async def _answer(self, request: RecommendRequest, timeout_s: float | None) -> Recommendations:
        call = self._call(request, timeout_s)
        try:
            while True:
                address, remaining_s = call.begin_attempt()
                code, message, response = await self._send(
                    self._stubs[address].ModelInfer, call.message, remaining_s, call.metadata
                )
                if code == "OK":
                    return call.succeed(response)
                delay_s = call.fail(code, message)
                if delay_s:
                    await self._until_closed(asyncio.sleep(delay_s))
        except asyncio.CancelledError:
            call.abandon()
            raise

    async def _answer_many(
        self, requests: Iterable[RecommendRequest], concurrency: int, timeout_s: float | None, return_exceptions: bool
    ) -> list[Any]:
        results: list[Any] = []
        source = iter(requests)

        async def work() -> None:
            for request in source:
                index = len(results)
                results.append(None)
                try:
                    results[index] = await self._answer(request, timeout_s)
                except RecommendError as error:
                    if not return_exceptions:
                        raise
                    results[index] = error
                    # What is refused before it is sent has not waited: many of these must not hold up the loop.
                    await asyncio.sleep(0)

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
        return results

    async def _send(
        self, method: Callable[..., Any], message: Any, timeout_s: float, metadata: tuple[tuple[str, str], ...]
    ) -> _Outcome:
        async def exchange() -> _Outcome:
            try:
                response = await method(message, timeout=timeout_s, metadata=metadata)
            except aio.AioRpcError as error:
                return error.code().name, error.details() or "", None
            except aio.InternalError:
                # gRPC without asyncio has a status for this and for the next.
                return "INTERNAL", "gRPC cannot send this; is there something invalid in the metadata?", None
            if response is None:
                return "INTERNAL", "the response is no message of its type", None
            return "OK", "", response

        done = await self._until_closed(exchange())
        return _CLOSED if done.cancelled() else done.result()

    async def _until_closed(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Wait for work in a task of its own, which is cancelled by `close` and with this task.

        gRPC would raise CancelledError in both cases. This way only a caller who cancels this task gets to see one.
        """
        task = asyncio.create_task(work)
        if self._context.closed.is_set():  # while this call was between two pieces of work
            task.cancel()
        self._under_way.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._under_way.discard(task)
            task.cancel()
        return task

    def _ensure_open(self) -> None:
        super()._ensure_open()
        self._check_loop()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._connect(aio)

    def _check_loop(self) -> None:
        if self._loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError("this AsyncRecommender belongs to another event loop; make one for each loop")
