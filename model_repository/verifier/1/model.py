"""Step 3 of `recommend`: drafted semantic IDs -> items that exist, ranked."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.golden import check_items
from genrec.serving.metrics import Metrics
from genrec.serving.step import Stamp, Step, tensor
from genrec.verifier import Verifier

Draft = tuple[Stamp, np.ndarray, np.ndarray, np.ndarray]


class TritonPythonModel(Step[Draft]):
    """It reads a stamp, codes int64 [K], scores float32 [K] and blocked catalogue rows int32 [b]."""

    def setup(self) -> None:
        bundle = self.bundle
        self.catalog = bundle.catalog
        self.verifier = Verifier(bundle.catalog, bundle.index)
        versions = bundle.manifest.bundle_version, str(bundle.manifest.catalog.version)
        self.version = np.array([[text.encode() for text in versions]], object)
        check_items(bundle.golden, self.catalog, self.verifier)
        self.metrics = Metrics(bundle.manifest)

    def read(self, request: Any) -> Draft:
        stamp = self.checked_stamp(request)
        codes, scores = tensor(request, "draft_codes")[0], tensor(request, "draft_scores")[0]
        return stamp, codes, scores, tensor(request, "blocked_rows")[0]

    def run(self, inputs: list[Draft]) -> list[list[Any]]:
        stamps, codes, scores, blocked = zip(*inputs, strict=True)
        top_k = np.array([stamp.top_k for stamp in stamps])
        unknown = np.array([stamp.unknown for stamp in stamps])
        result = self.verifier.verify(np.stack(codes), np.stack(scores), blocked, top_k)
        counts = np.stack([result.drafted, result.valid, unknown, result.filled], axis=1).astype(np.int32)
        self.metrics.count(counts)
        item_ids = self.catalog.item_ids[result.rows].astype(object)[None]
        bounds = zip(result.offsets[:-1].tolist(), result.offsets[1:].tolist(), strict=True)
        return [
            [
                pb.Tensor("item_ids", item_ids[:, start:end]),
                pb.Tensor("scores", result.scores[None, start:end]),
                pb.Tensor("source", result.source[None, start:end]),
                pb.Tensor("counts", counts[i : i + 1]),
                pb.Tensor("version", self.version),
            ]
            for i, (start, end) in enumerate(bounds)
        ]

    def finalize(self) -> None:
        self.metrics.close()
