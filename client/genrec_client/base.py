"""What the clients share: their arguments, the calls they make, and the signatures of their methods."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar, overload

from tritonclient.grpc import service_pb2, service_pb2_grpc

from genrec_client import wire
from genrec_client.addresses import AddressPool
from genrec_client.arguments import (
    ItemId,
    require_count,
    require_flag,
    require_metadata,
    require_name,
    require_seconds,
)
from genrec_client.call import Call, CallContext
from genrec_client.channel import Channel, ChannelOpener, TlsOptions, split_urls
from genrec_client.request import RecommendRequest
from genrec_client.retry import RetryBudget, RetryPolicy
from genrec_client.rules import Rules
from genrec_client.statistics import Counters, Statistics

# What `recommend` returns, and `recommend_many` with and without errors in it: values, or what is awaited for them.
One = TypeVar("One")
ManyOrErrors = TypeVar("ManyOrErrors")
Many = TypeVar("Many")


def _span_maker() -> Callable[[wire.InferRequest], Any]:
    try:
        from genrec_client.tracing import CallSpan
    except ModuleNotFoundError as error:
        raise ImportError(
            f"tracing needs {error.name}, which is not installed: pip install 'genrec-client[tracing]'"
        ) from error
    return CallSpan


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether one address would serve requests; `message` says why not."""

    url: str
    ready: bool
    message: str = ""


class BaseRecommender(ABC, Generic[One, ManyOrErrors, Many]):
    """A client without the sending. `Recommender` says what the arguments mean."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        model: str = "recommend",
        timeout_s: float = 1.0,
        retry: RetryPolicy | None = None,
        tls: bool | TlsOptions = False,
        token: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        channel_options: Sequence[tuple[str, object]] = (),
        tracing: bool = False,
    ) -> None:
        require_name("model", model)
        require_seconds("timeout_s", timeout_s)
        if not isinstance(retry, (RetryPolicy, type(None))):
            raise ValueError(f"retry is {retry!r}, a {type(retry).__name__}; give a RetryPolicy")
        policy = retry or RetryPolicy()
        addresses = split_urls(urls, tls=bool(tls))
        self._model = model
        self._timeout_s = timeout_s
        require_flag("tracing", tracing)
        headers = require_metadata(metadata, token)
        self._context = CallContext(
            addresses,
            AddressPool(len(addresses), policy.cool_down_s),
            policy,
            RetryBudget(policy.budget_ratio, policy.budget_reserve, policy.budget_capacity),
            Counters(),
            headers,
            _span_maker() if tracing else None,
        )
        self._opener = ChannelOpener(tls, channel_options)
        self._channels: list[Channel] = []
        self._stubs: list[Any] = []
        self._prepare()

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
        rules: Rules | Mapping[str, Any] | str | None = None,
        sheddable: bool | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> One:
        """Recommend items to one user.

        history: item ids, oldest first; may be empty. top_k: items wanted, the bundle's default if None. exclude: item
        ids never to return. allow_history: whether items of the history may come back, no if None. query: text query,
        for bundles that were trained with one. rules: of the shop, for this request; a mapping or JSON text in the
        server's own form is taken, too. sheddable: whether a server with too many requests may refuse this one before
        others, no if None. timeout_s: seconds for the call with all its attempts. request_id: that logs and traces of
        the server name it by; made up if None, and told in the answer or the error.

        Raises InvalidRequest for a request that is wrong by this client's or the server's judgement, Unavailable if no
        address could answer, DeadlineExceeded if the time ran out, Overloaded if the server or a proxy refused the
        load, RecommendError for anything else, such as an error inside the server, and RuntimeError once the client is
        closed.
        """
        request = RecommendRequest(history, top_k, exclude, allow_history, query, rules, sheddable, request_id)
        return self._answer(request, timeout_s)

    @overload
    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        return_exceptions: Literal[True] = ...,
    ) -> ManyOrErrors: ...

    @overload
    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        return_exceptions: Literal[False],
    ) -> Many: ...

    def recommend_many(
        self,
        requests: Iterable[RecommendRequest],
        *,
        concurrency: int = 32,
        timeout_s: float | None = None,
        return_exceptions: bool = True,
    ) -> Any:
        """Recommend items to many users, as concurrent requests of one user each; the server forms the batches.

        requests: one for each user; drawn only as fast as they are sent. concurrency: requests under way at once; those
        that wait too long for the server end in DeadlineExceeded. timeout_s: seconds for each user's call, from its own
        first attempt. return_exceptions: True returns a user's error in the place of the answer; False raises the first
        one that happens, and cancels what is under way.

        Returns one element for each request, in their order. Raises RecommendError as `recommend` does, only without
        `return_exceptions`, and RuntimeError once the client is closed.
        """
        require_count("concurrency", concurrency)
        require_flag("return_exceptions", return_exceptions)
        return self._answer_many(requests, concurrency, timeout_s, return_exceptions)

    @abstractmethod
    def _prepare(self) -> None:
        """The arguments are good: finish the construction."""

    @abstractmethod
    def _answer(self, request: RecommendRequest, timeout_s: float | None) -> One: ...

    @abstractmethod
    def _answer_many(
        self, requests: Iterable[RecommendRequest], concurrency: int, timeout_s: float | None, return_exceptions: bool
    ) -> Any: ...

    def _connect(self, library: ModuleType) -> None:
        self._channels = [self._opener.open(url, library) for url in self._context.urls]
        self._stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in self._channels]

    def _call(self, request: RecommendRequest, timeout_s: float | None) -> Call:
        self._ensure_open()
        message = wire.build_request(request, self._model)
        message.id = message.id or os.urandom(8).hex()
        return Call(self._context, message, self._timeout_s if timeout_s is None else timeout_s)

    def _ready_request(self, timeout_s: float | None) -> tuple[Any, float]:
        """The question whether the model is ready, and the seconds that it may take."""
        self._ensure_open()
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        require_seconds("timeout_s", timeout_s)
        return service_pb2.ModelReadyRequest(name=self._model), timeout_s

    def _readiness_of(self, url: str, code: str, message: str, response: Any) -> Readiness:
        """What an address answered: the gRPC status, and the response if that is OK."""
        if code != "OK":
            return Readiness(url, False, f"{code}: {message}")
        return Readiness(url, response.ready, "" if response.ready else f"model {self._model!r} is not ready")

    def _ensure_open(self) -> None:
        if self._context.closed.is_set():
            raise RuntimeError(f"this {type(self).__name__} is closed")
