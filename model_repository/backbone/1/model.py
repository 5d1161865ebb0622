"""Step 2 of `recommend`: one prefill and the draft head's beam -> drafted semantic IDs."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog import BucketView, CatalogVersion, CatalogView, PrefixTable
from genrec.engines import DEPLOYED, open_engine
from genrec.engines.base import Drafts, InFlightEngine
from genrec.errors import InvalidRequest
from genrec.golden import check_drafts
from genrec.rules import Filter, RuleBook
from genrec.rules.narrowing import Narrowed, Narrowing, masks_of
from genrec.serving.step import Step, checked_stamp, tensor
from genrec.serving.waiting import Pace, waiting_file

_NICER = 5
_NOT_NARROWED = np.array([[0, -1]])  # nor is it known how many items are left
Drafted = tuple[Drafts, Narrowed | None]


@dataclass(frozen=True)
class Catalogue:
    """What the step needs of a version of the catalogue.

    live, masks: of a live one, None for the bundle's own, whose masks the engine has already.
    """

    items: CatalogView
    book: RuleBook
    live: CatalogVersion | None
    masks: PrefixTable | None


@dataclass(frozen=True)
class Prompt:
    """One request. token_ids: int32 [P]. rules: in their canonical form. The rest: of its stamp."""

    token_ids: np.ndarray
    rules: bytes
    version: int
    deadline_ns: int
    number: int
    handed_ns: int


class TritonPythonModel(Step[Prompt]):
    def setup(self) -> None:
        kind = self.parameters["engine"]
        given = {"threads": int(self.parameters["threads"]), "max_batch_size": self.max_batch_size}
        given |= {name: self.parameters[name] for name in ("precision", "device", "buckets")}
        options = {name: given[name] for name in DEPLOYED[kind]}
        rule_bytes = int(self.parameters["rules_memory_mb"]) << 20
        # The other steps and Triton's own threads go first: else a flood of requests could not even be refused.
        os.nice(_NICER)
        self.engine = open_engine(self.bundle, kind, rule_bytes=rule_bytes, **options)
        self.masked = self.parameters["masked"] == "true"
        golden = self.bundle.golden
        self.engine.warm_up(golden["prompt"], self.max_batch_size, masked=self.masked)
        check_drafts(golden, self.engine)
        self.catalogues = self.versions(self.catalogue)
        self.drafted_with: Catalogue | None = None
        masks = self.engine.rule_masks if self.engine.takes_rules else None
        written = self.engine.update_rules if self.engine.copies_masks else None
        self.narrowing = Narrowing(self.bundle.space, masks, written)
        self.in_flight = InFlight()
        self.follow()  # a live catalogue's masks may be larger: those are recorded before this is ready
        if not isinstance(self.engine, InFlightEngine):  # that one has no batches whose pace could be told
            one_s, full_s = (self.seconds(golden["prompt"], batch) for batch in (1, self.max_batch_size))
            self.pace = Pace(waiting_file(os.getppid()), self.instance, one_s, full_s, self.max_batch_size)

    def seconds(self, prompt: np.ndarray, batch: int) -> float:
        """What a batch of equal prompts takes."""
        spent = []
        for _ in range(2):
            began = time.perf_counter()
            self.engine.draft([prompt] * batch, masked=self.masked)
            spent.append(time.perf_counter() - began)
        return min(spent)

    def catalogue(self, items: CatalogView, buckets: BucketView, masks: Callable[[], PrefixTable]) -> Catalogue:
        if isinstance(items, CatalogVersion):
            return Catalogue(items, self.rule_book(items), items, masks())
        return Catalogue(items, self.rule_book(items), None, None)

    def read(self, request: Any) -> Prompt:
        stamp = checked_stamp(request)
        token_ids = tensor(request, "input_ids")[0]
        return Prompt(token_ids, stamp.rules, stamp.catalog_version, stamp.deadline_ns, stamp.number, stamp.handed_ns)

    def handed_ns(self, read: Prompt) -> int:
        return read.handed_ns

    def run(self, inputs: list[Prompt]) -> list[list[Any]]:
        with self.pace.batch(max(prompt.number for prompt in inputs), len(inputs)):
            return self.drafted(inputs)

    def drafted(self, inputs: list[Prompt]) -> list[list[Any]]:
        narrowed = self.narrowed(inputs)
        rules = None if narrowed is None else masks_of(narrowed)
        drafts = self.engine.draft([prompt.token_ids for prompt in inputs], masked=self.masked, rules=rules)
        return [tensors(i, (drafts, None if narrowed is None else narrowed[i])) for i in range(len(inputs))]

    def narrowed(self, inputs: list[Prompt]) -> list[Narrowed] | None:
        """What rules narrow each request to, None where none has any: by the newest version of the batch.

        That leaves out of an older version what is gone meanwhile, and nothing that is to be found.
        """
        version = max(prompt.version for prompt in inputs)
        entry = self.catalogues.at(version) or self.catalogues.current
        filters = [entry.made.book.filters(prompt.rules) for prompt in inputs]
        if not any(filters):
            return None
        return self.narrowing.of_batch(entry.made.items, entry.version, filters, self.in_flight.filters)

    def execute(self, requests: list[Any]) -> list[Any]:
        self.follow()
        if isinstance(self.engine, InFlightEngine):
            return self.execute_in_flight(requests, partial(self.begin, self.engine), partial(tensors, 0))
        most = self.pace.most_at_once
        if len(requests) <= most:
            return super().execute(requests)
        # Prompts of about one length together: the shorter ones are padded.
        order = np.argsort([tensor(request, "input_ids").size for request in requests], kind="stable").tolist()
        return self.execute_in_parts(requests, [order[at : at + most] for at in range(0, len(order), most)])

    def follow(self) -> None:
        """Draft with the masks of the current version: they hold what every version needs that can be asked for."""
        made = self.catalogues.current.made
        if made.live is None or made.masks is None or made is self.drafted_with:
            return
        if self.drafted_with is None or made.masks is not self.drafted_with.masks:  # those of one base change in place
            self.engine.set_masks(made.masks)
        if self.engine.copies_masks:
            self.engine.update_masks(made.masks.slots(made.live.touched_codes()))
        self.drafted_with = made

    def begin(self, engine: InFlightEngine, prompt: Prompt, cancelled: Callable[[], bool]) -> Future[Drafted]:
        """Start one request on an engine that forms its own batches. Raises InvalidRequest."""
        narrowed = self.narrowed([prompt])
        rule = None if narrowed is None else narrowed[0].mask
        try:
            drafting = engine.submit(prompt.token_ids, prompt.deadline_ns, cancelled, rule)
        except ValueError as error:
            raise InvalidRequest(f"input_ids: {error}") from error
        drafted: Future[Drafted] = Future()
        filters = self.catalogues.current.made.book.filters(prompt.rules)
        if rule is not None:
            self.in_flight.begin(filters)

        def done(drafting: Future[Drafts]) -> None:
            if rule is not None:
                self.in_flight.end(filters)
            try:
                drafted.set_result((drafting.result(), None if narrowed is None else narrowed[0]))
            except (Exception, CancelledError) as error:
                drafted.set_exception(error)

        drafting.add_done_callback(done)
        return drafted

    def finalize(self) -> None:
        super().finalize()
        self.engine.close()
        self.catalogues.close()


class InFlight:
    """The filters of requests in flight, whose masks must stay as they are. Requests end in other threads."""

    def __init__(self) -> None:
        self._lock, self._counts = threading.Lock(), Counter[frozenset[Filter]]()

    @property
    def filters(self) -> list[frozenset[Filter]]:
        with self._lock:
            return [*self._counts]

    def begin(self, filters: frozenset[Filter]) -> None:
        with self._lock:
            self._counts[filters] += 1

    def end(self, filters: frozenset[Filter]) -> None:
        with self._lock:
            self._counts[filters] -= 1
            if not self._counts[filters]:
                del self._counts[filters]


def tensors(i: int, drafted: Drafted) -> list[Any]:
    """The outputs of the i-th request of a batch: behind the codes, what rules narrowed the beam to, and the time."""
    drafts, narrowed = drafted
    note = _NOT_NARROWED if narrowed is None else narrowed.noted()
    return [
        pb.Tensor("draft_codes", np.concatenate([drafts.codes[i : i + 1], note, [[time.monotonic_ns()]]], 1)),
        pb.Tensor("draft_scores", drafts.scores[i : i + 1]),
    ]
