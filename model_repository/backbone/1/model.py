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
from genrec.serving.step import Step, checked_stamp, tensor


@dataclass(frozen=True)
class Masks:
    """What the step needs of a version of a live catalogue."""

    table: PrefixTable
    version: CatalogVersion

    @classmethod
    def of(cls, items: CatalogView, buckets: BucketView, masks: Callable[[], PrefixTable]) -> "Masks | None":
        """None for the bundle's own catalogue, whose masks the engine has already."""
        return cls(masks(), items) if isinstance(items, CatalogVersion) else None


class TritonPythonModel(Step[tuple[np.ndarray, int]]):
    """It reads a prompt, int32 [P], and its deadline in ns on CLOCK_MONOTONIC."""

    def setup(self) -> None:
        options = {"threads": int(self.parameters["threads"])} if self.parameters["engine"] == "onnx" else {}
        self.engine = open_engine(self.bundle, self.parameters["engine"], **options)
        self.masked = self.parameters["masked"] == "true"
        golden = self.bundle.golden
        self.engine.draft([golden["prompt"]] * self.max_batch_size, masked=self.masked)  # warm-up at full size
        check_drafts(golden, self.engine)
        self.catalogues = self.versions(Masks.of)
        self.masks: Masks | None = None

    def read(self, request: Any) -> tuple[np.ndarray, int]:
        stamp = checked_stamp(request)
        return tensor(request, "input_ids")[0], stamp.deadline_ns

    def run(self, inputs: list[tuple[np.ndarray, int]]) -> list[list[Any]]:
        drafts = self.engine.draft([prompt for prompt, _ in inputs], masked=self.masked)
        return [tensors(drafts, i) for i in range(len(inputs))]

    def execute(self, requests: list[Any]) -> list[Any]:
        self.follow()
        if isinstance(self.engine, InFlightEngine):
            return self.execute_in_flight(requests, partial(begin, self.engine), tensors)
        return super().execute(requests)

    def follow(self) -> None:
        """Draft with the masks of the current version: they hold what every version needs that can be asked for."""
        masks = self.catalogues.current.made
        if masks is None or masks is self.masks:
            return
        if self.masks is None or masks.table is not self.masks.table:  # of another base; those of one change in place
            self.engine.set_masks(masks.table)
        if self.engine.copies_masks:
            self.engine.update_masks(masks.table.slots(masks.version.touched_codes()))
        self.masks = masks

    def finalize(self) -> None:
        self.engine.close()
        self.catalogues.close()


def begin(engine: InFlightEngine, read: tuple[np.ndarray, int], cancelled: Callable[[], bool]) -> Future[Drafts]:
    """Start one request on an engine that forms its own batches. Raises InvalidRequest."""
    prompt, deadline_ns = read
    try:
        return engine.submit(prompt, deadline_ns, cancelled)
    except ValueError as error:
        raise InvalidRequest(f"input_ids: {error}") from error


def tensors(drafts: Drafts, i: int = 0) -> list[Any]:
    """The outputs of the i-th request of a batch."""
    return [pb.Tensor("draft_codes", drafts.codes[i : i + 1]), pb.Tensor("draft_scores", drafts.scores[i : i + 1])]
