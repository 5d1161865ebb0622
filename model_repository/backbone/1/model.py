"""Step 2 of `recommend`: one prefill and the draft head's beam -> drafted semantic IDs."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog import BucketView, CatalogVersion, CatalogView, PrefixTable
from genrec.engines import open_engine
from genrec.engines.base import Drafts, InFlightEngine
from genrec.errors import InvalidRequest
from genrec.golden import check_drafts
from genrec.rules import RuleBook
from genrec.rules.narrowing import Narrowed, Narrowing
from genrec.serving.step import Step, checked_stamp, tensor

_NOT_NARROWED = np.array([[0, -1]])


@dataclass(frozen=True)
class Catalogue:
    """What the step needs of a version of the catalogue. masks: None for the bundle's own, which the engine has."""

    items: CatalogView
    book: RuleBook
    masks: PrefixTable | None


@dataclass(frozen=True)
class Prompt:
    """One request. token_ids: int32 [P]. rules: in their canonical form. deadline_ns: on CLOCK_MONOTONIC."""

    token_ids: np.ndarray
    rules: bytes
    version: int
    deadline_ns: int


class TritonPythonModel(Step[Prompt]):
    def setup(self) -> None:
        options = {"threads": int(self.parameters["threads"])} if self.parameters["engine"] == "onnx" else {}
        self.engine = open_engine(self.bundle, self.parameters["engine"], **options)
        self.masked = self.parameters["masked"] == "true"
        golden = self.bundle.golden
        self.engine.draft([golden["prompt"]] * self.max_batch_size, masked=self.masked)  # warm-up at full size
        check_drafts(golden, self.engine)
        self.catalogues = self.versions(self.catalogue)
        self.drafted_with: Catalogue | None = None
        self.narrowing = Narrowing(self.bundle.space, self.engine.rule_masks)

    def catalogue(self, items: CatalogView, buckets: BucketView, masks: Callable[[], PrefixTable]) -> Catalogue:
        return Catalogue(items, self.rule_book(items), masks() if isinstance(items, CatalogVersion) else None)

    def read(self, request: Any) -> Prompt:
        stamp = checked_stamp(request)
        rules = tensor(request, "checked_rules")[0].tobytes()
        return Prompt(tensor(request, "input_ids")[0], rules, stamp.catalog_version, stamp.deadline_ns)

    def run(self, inputs: list[Prompt]) -> list[list[Any]]:
        narrowed = self.narrowed(inputs)
        rules = None if narrowed is None else [one.mask for one in narrowed]
        drafts = self.engine.draft([prompt.token_ids for prompt in inputs], masked=self.masked, rules=rules)
        return [tensors(drafts, i, None if narrowed is None else narrowed[i]) for i in range(len(inputs))]

    def narrowed(self, inputs: list[Prompt]) -> list[Narrowed] | None:
        """What rules narrow each request to, None where none has any: by the newest version of the batch.

        That leaves out of an older version what is gone meanwhile, and nothing that is to be found.
        """
        version = max(prompt.version for prompt in inputs)
        entry = self.catalogues.at(version) or self.catalogues.current
        filters = [entry.made.book.filters(prompt.rules) for prompt in inputs]
        return self.narrowing.of_batch(entry.made.items, entry.version, filters) if any(filters) else None

    def execute(self, requests: list[Any]) -> list[Any]:
        self.follow()
        if isinstance(self.engine, InFlightEngine):
            return self.execute_in_flight(requests, partial(begin, self.engine), tensors)
        return super().execute(requests)

    def follow(self) -> None:
        """Draft with the masks of the current version: they hold what every version needs that can be asked for."""
        made = self.catalogues.current.made
        if made.masks is None or made is self.drafted_with:
            return
        if self.drafted_with is None or made.masks is not self.drafted_with.masks:  # those of one base change in place
            self.engine.set_masks(made.masks)
        if self.engine.copies_masks:
            self.engine.update_masks(made.masks.slots(made.items.touched_codes()))
        self.drafted_with = made

    def finalize(self) -> None:
        self.engine.close()
        self.catalogues.close()


def begin(engine: InFlightEngine, read: Prompt, cancelled: Callable[[], bool]) -> Future[Drafts]:
    """Start one request on an engine that forms its own batches. Raises InvalidRequest."""
    try:
        return engine.submit(read.token_ids, read.deadline_ns, cancelled)
    except ValueError as error:
        raise InvalidRequest(f"input_ids: {error}") from error


def tensors(drafts: Drafts, i: int = 0, narrowed: Narrowed | None = None) -> list[Any]:
    """The outputs of the i-th request of a batch."""
    return [
        pb.Tensor("draft_codes", drafts.codes[i : i + 1]),
        pb.Tensor("draft_scores", drafts.scores[i : i + 1]),
        pb.Tensor("narrowing", _NOT_NARROWED if narrowed is None else narrowed.tensor()),
    ]
