"""Step 2 of `recommend`: one prefill and the draft head's beam -> drafted semantic IDs."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog import BucketView, CatalogView, PrefixTable
from genrec.engines import open_engine
from genrec.engines.base import Drafts, InFlightEngine
from genrec.errors import InvalidRequest
from genrec.golden import check_drafts
from genrec.serving.step import Step, checked_stamp, tensor


class TritonPythonModel(Step[tuple[np.ndarray, int]]):
    """It reads a prompt, int32 [P], and its deadline in ns on CLOCK_MONOTONIC."""

    def setup(self) -> None:
        options = {"threads": int(self.parameters["threads"])} if self.parameters["engine"] == "onnx" else {}
        self.engine = open_engine(self.bundle, self.parameters["engine"], **options)
        self.masked = self.parameters["masked"] == "true"
        golden = self.bundle.golden
        self.engine.draft([golden["prompt"]] * self.max_batch_size, masked=self.masked)  # warm-up at full size
        check_drafts(golden, self.engine)
        self.catalogues = self.versions(masks_of)
        self.masks = self.bundle.masks

    def read(self, request: Any) -> tuple[np.ndarray, int]:
        stamp = checked_stamp(request)
        return tensor(request, "input_ids")[0], stamp.deadline_ns

    def run(self, inputs: list[tuple[np.ndarray, int]]) -> list[list[Any]]:
        drafts = self.engine.draft([prompt for prompt, _ in inputs], masked=self.masked)
        return [tensors(drafts, i) for i in range(len(inputs))]

    def execute(self, requests: list[Any]) -> list[Any]:
        # They change in place; others come with another base. They hold what every version needs that can be asked for.
        masks = self.catalogues.current.made
        if masks is not self.masks:
            self.engine.set_masks(masks)
            self.masks = masks
        if isinstance(self.engine, InFlightEngine):
            return self.execute_in_flight(requests, partial(begin, self.engine), tensors)
        return super().execute(requests)

    def finalize(self) -> None:
        self.engine.close()
        self.catalogues.close()


def masks_of(items: CatalogView, buckets: BucketView, masks: Callable[[], PrefixTable]) -> PrefixTable:
    """What the step needs of a version of the catalogue."""
    return masks()


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
