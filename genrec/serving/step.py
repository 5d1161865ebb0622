"""What the ensemble's Python models share: opening the bundle, reading tensors, refusing, deadlines.

Imported inside Triton only: `triton_python_backend_utils` exists nowhere else.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import triton_python_backend_utils as pb

from genrec.bundle import Bundle
from genrec.catalog import BucketView, CatalogVersion, CatalogView, PrefixTable
from genrec.catalog.published import MASKS, Entry, OneVersion, Published, keep_versions_s
from genrec.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, StaleVersion, shown
from genrec.rules import RuleBook
from genrec.serving.page import Page, StepTimes
from genrec.serving.request_log import RequestLog
from genrec.serving.triton.launch import ARRIVED

Input = TypeVar("Input")
Made = TypeVar("Made")
Result = TypeVar("Result")


_SHEDDABLE = "sheddable"  # a parameter of the whole request
_TOLD = 8  # numbers of a stamp before the history and the rules
_LONGEST_NS = 60_000_000_000  # that a request is believed to have waited


@dataclass(frozen=True)
class Stamp:
    """What `preprocessing` notes for the later steps: the internal tensor `stamp`, int64 [8 + h + r].

    Times are on CLOCK_MONOTONIC, which all processes of a machine share. began_ns: when the front had the request, or
    without one `preprocessing`; handed_ns: when that was done. number: of the request, as of `Gate`.
    history: integers [h], the rows that the prompt holds, oldest first; empty where no votes need them. rules: the
    request's in their canonical form, of 8 r bytes; empty for none. One tensor, because each costs a request more than
    what it holds.
    """

    top_k: int
    unknown: int
    catalog_version: int
    deadline_ns: int
    number: int
    began_ns: int
    handed_ns: int
    history: np.ndarray
    rules: bytes

    def tensor(self) -> Any:
        told = (
            *(self.top_k, self.unknown, self.catalog_version, self.deadline_ns, self.number),
            *(self.began_ns, self.handed_ns, self.history.size),
        )
        values = np.array(told, np.int64)
        if self.history.size or self.rules:
            values = np.concatenate([values, self.history, np.frombuffer(self.rules, np.int64)])
        return pb.Tensor("stamp", values[None])

    @classmethod
    def of(cls, request: Any) -> Stamp:
        values = tensor(request, "stamp")[0]
        top_k, unknown, version, deadline_ns, number, began_ns, handed_ns, items = values[:_TOLD].tolist()
        history, rules = np.split(values[_TOLD:], [items])
        return cls(top_k, unknown, version, deadline_ns, number, began_ns, handed_ns, history, rules.tobytes())


class Step(ABC, Generic[Input]):
    """A Triton Python model that answers each request of a batch on its own terms.

    Subclasses read one request, and run all that were read as one batch. waits: whether another step comes before.
    """

    waits = True

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.max_batch_size = int(config["max_batch_size"])
        self.instance = int(args["model_instance_name"].rpartition("_")[2])
        self.bundle = Bundle(open_folder(self.parameters["bundle"]))
        self._books: dict[tuple[tuple[str, str], ...], RuleBook] = {}
        self.page = Page({"bundle_version": self.bundle.manifest.bundle_version})
        wanted, messages = self.parameters["log_requests"], self.parameters["log_messages"] == "true"
        self._log = RequestLog(args["model_name"], wanted, messages)
        self._times = StepTimes(self.page, args["model_name"], self.waits)
        self.setup()
        self.page.start()

    @abstractmethod
    def setup(self) -> None:
        """Prepare the step from `self.bundle`, and answer the golden request; raises if it cannot serve."""

    def rule_book(self, view: CatalogView) -> RuleBook:
        """What reads rules for a version of the catalogue. Raises InvalidRequest if the deployment's do not fit it."""
        kinds = tuple(sorted(view.kinds.items()))
        if kinds not in self._books:
            self._books[kinds] = RuleBook(view.kinds, self.parameters["rules"])
        return self._books[kinds]

    @abstractmethod
    def read(self, request: Any) -> Input:
        """Read and check one request. Raises InvalidRequest, DeadlineExceeded or StaleVersion to refuse it."""

    def handed_ns(self, read: Input) -> int:
        """When the step before handed a request over, on CLOCK_MONOTONIC; of a step with `waits`."""
        raise NotImplementedError

    @abstractmethod
    def run(self, inputs: list[Input]) -> list[list[Any]]:
        """Output tensors of each of `inputs`, in order."""

    def execute(self, requests: list[Any]) -> list[Any]:
        began = time.monotonic_ns()
        responses: list[Any] = [None] * len(requests)
        inputs: list[Input] = []
        places = []
        for place, request in enumerate(requests):
            try:
                inputs.append(self.read(request))
                places.append(place)
            except Exception as error:
                responses[place] = self._refused(request, error)
        going_on = [requests[place] for place in places]
        for place, response in zip(places, self._responses(going_on, inputs), strict=True):
            responses[place] = response
        self._observe(going_on, inputs, began)
        return responses

    def _observe(self, requests: list[Any], inputs: list[Input], began_ns: int) -> None:
        if not inputs:
            return
        handed, ended_ns = [self.handed_ns(one) if self.waits else 0 for one in inputs], time.monotonic_ns()
        self._times.observe(handed, began_ns, ended_ns)
        if self._log.answers:
            self._log.answered([_id_of(request) for request in requests], began_ns, ended_ns)

    def _refused(self, request: Any, error: BaseException) -> Any:
        """The answer to a request that failed with `error`."""
        code, status, reason, message = _refusal(error)
        self._log.refused(_id_of(request), status, reason, message)
        return pb.InferenceResponse(error=pb.TritonError(message, getattr(pb.TritonError, code)))

    def execute_in_parts(self, requests: list[Any], parts: Iterable[Sequence[int]]) -> list[Any]:
        """What `execute` returns where each part of the requests, by place, is run and answered before the next."""
        for part in parts:
            senders = [requests[place].get_response_sender() for place in part]
            for sender, response in zip(senders, Step.execute(self, [requests[place] for place in part]), strict=True):
                sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return [None] * len(requests)  # they have their answers

    def _responses(self, requests: list[Any], inputs: list[Input]) -> list[Any]:
        try:
            return [pb.InferenceResponse(tensors) for tensors in self.run(inputs)] if inputs else []
        except Exception as error:
            if len(inputs) == 1:
                return [self._refused(requests[0], error)]
            # One bad request must not fail its batch.
            return [self._responses([request], [one])[0] for request, one in zip(requests, inputs, strict=True)]

    def execute_in_flight(
        self,
        requests: list[Any],
        begin: Callable[[Input, Callable[[], bool]], Future[Result]],
        tensors: Callable[[Result], list[Any]],
    ) -> list[Any]:
        """What `execute` returns where batches are formed further on: each request is answered when it is done.

        begin(input, cancelled): starts one request; cancelled() says whether its client has gone. Raises InvalidRequest
        to refuse it. tensors(result): the output tensors of what became of it.
        """
        began = time.monotonic_ns()
        responses: list[Any] = []
        for request in requests:
            try:
                read, sender = self.read(request), request.get_response_sender()
                begun = begin(read, sender.is_cancelled)
                begun.add_done_callback(partial(self._send, request, sender, tensors))
                begun.add_done_callback(partial(self._observe_one, request, read, began))
                responses.append(None)  # `sender` answers it
            except Exception as error:
                responses.append(self._refused(request, error))
        return responses

    def _send(self, request: Any, sender: Any, tensors: Callable[[Result], list[Any]], future: Future[Result]) -> None:
        """Answer a request in flight with what became of it."""
        try:
            response = pb.InferenceResponse(tensors(future.result()))
        except (Exception, CancelledError) as error:
            response = self._refused(request, error)
        sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _observe_one(self, request: Any, read: Input, began_ns: int, answered: Future[Any]) -> None:
        self._observe([request], [read], began_ns)

    def finalize(self) -> None:
        """Write the last figures; subclasses close what they opened."""
        self.page.close()

    def versions(
        self, make: Callable[[CatalogView, BucketView, Callable[[], PrefixTable]], Made]
    ) -> Published[Made] | OneVersion[Made]:
        """The versions of the catalogue that a request may be stamped with: the bundle's own, or those of a live one.

        make(items, buckets, masks): what this step wants of a version. masks() maps them; versions on one base share
        the same.
        """
        bundle, root = self.bundle, self.parameters["catalog"]
        if not root:
            manifest = bundle.manifest
            created = datetime.datetime.fromisoformat(manifest.created).timestamp()
            return OneVersion(
                manifest.catalog.version, created, make(bundle.catalog, bundle.index, lambda: bundle.masks)
            )

        @lru_cache(maxsize=2)
        def masks(base: Path) -> PrefixTable:
            return PrefixTable.load(base / MASKS, bundle.space)

        def made(catalog: CatalogVersion, base: Path) -> Made:
            return make(catalog, catalog, partial(masks, base))

        keep_s = keep_versions_s(int(self.parameters["timeout_ms"]))
        return Published(open_folder(root), bundle.space, made, keep_s)


def checked_stamp(request: Any) -> Stamp:
    """The request's stamp. Raises DeadlineExceeded if the request must not go on."""
    stamp = Stamp.of(request)
    if time.monotonic_ns() > stamp.deadline_ns:
        raise DeadlineExceeded(
            "request timeout expired before this step could start; allow more time or send fewer requests"
        )
    return stamp


def stamped(versions: Published[Made] | OneVersion[Made], stamp: Stamp) -> Entry[Made]:
    """The version that a request was stamped with. Raises StaleVersion if it cannot be asked for any more."""
    entry = versions.at(stamp.catalog_version)
    if entry is None:
        raise StaleVersion(
            f"request was prepared with catalogue {stamp.catalog_version}, this step has {versions.current.version}; "
            "send it again"
        )
    return entry


def open_folder(path: str) -> Path:
    """`path`, of a folder, by a name that this process can open; its descriptor stays open. Raises OSError.

    Triton starts Python in the C locale, whatever the environment says. Names that are not ASCII cannot be opened
    there: Python wants their bytes as surrogates, other libraries as UTF-8. That of a descriptor suits all.
    """
    if path.isascii() or sys.getfilesystemencoding() == "utf-8":
        return Path(path)
    try:
        descriptor = os.open(path.encode(), os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    name = f"/proc/{os.getpid()}/fd/{descriptor}"
    pb.Logger.log_info(f"{name} is {path}")
    return Path(name)


def tensor(request: Any, name: str) -> np.ndarray:
    """The request's input `name`, with its leading batch dimension of 1."""
    return pb.get_input_tensor_by_name(request, name).as_numpy()


def _id_of(request: Any) -> str:
    """The request's id, for the log; "" for one that is not UTF-8."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return ""


def optional(request: Any, name: str, convert: Callable[[np.ndarray], Any], default: Any) -> Any:
    """`convert` of the request's input `name`, or `default` where the client did not send it."""
    found = pb.get_input_tensor_by_name(request, name)
    return default if found is None else convert(found.as_numpy())


@dataclass(frozen=True)
class Told:
    """Parameters of a whole request.

    sheddable: whether the client says that it may be shed before others. arrived_us: when the front had it, in
    microseconds since 1970; 0 without a front.
    """

    sheddable: bool = False
    arrived_us: int = 0

    @classmethod
    def of(cls, request: Any) -> Told:
        """Raises InvalidRequest for what the client cannot mean."""
        try:
            text = request.parameters()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"the request's parameters are not UTF-8: {error}; send names and values as text"
            ) from None
        if not text or text == "{}":
            return cls()
        told = json.loads(text)
        value = told.get(_SHEDDABLE, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"the parameter {_SHEDDABLE} is {value!r}; give true or false")
        arrived = str(told.get(ARRIVED, "0"))
        if not (arrived.isascii() and arrived.isdecimal()):
            raise InvalidRequest(f"the parameter {ARRIVED} is {shown(arrived)}; leave it out, the front sets it")
        return cls(value, int(arrived))

    def waited_ns(self) -> int:
        """For how long the front and the server have the request; the machine's clock may be set meanwhile."""
        return min(max(0, time.time_ns() - 1000 * self.arrived_us), _LONGEST_NS) if self.arrived_us else 0


def _refusal(error: BaseException) -> tuple[str, str, str, str]:
    """What a request ends in that failed with `error`; after a defect of ours the server stays.

    The code as the backend names it, and as gRPC does; the reason in one word, for the log; the message.
    """
    if isinstance(error, InvalidRequest):
        return "INVALID_ARG", "INVALID_ARGUMENT", "invalid", str(error)
    for kind, reason in ((DeadlineExceeded, "late"), (Overloaded, "overloaded"), (StaleVersion, "stale")):
        if isinstance(error, kind):
            return "UNAVAILABLE", "UNAVAILABLE", reason, str(error)
    if isinstance(error, (Cancelled, CancelledError)):
        return "CANCELLED", "CANCELLED", "cancelled", str(error) or "the server shuts down"
    pb.Logger.log_error("".join(traceback.format_exception(error)))
    return "INTERNAL", "INTERNAL", "failed", "internal error, see the server's log"
