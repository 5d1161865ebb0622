"""Step 3 of `recommend`: drafted semantic IDs -> items that exist, ranked."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog import BucketView, CatalogView, PrefixTable
from genrec.catalog.published import Entry
from genrec.golden import check_items
from genrec.rules import Applied
from genrec.rules.book import kept
from genrec.rules.explanation import explanation
from genrec.serving.metrics import Metrics
from genrec.serving.step import Stamp, Step, checked_stamp, stamped, tensor
from genrec.serving.waiting import Refusals, waiting_file
from genrec.verifier import VOTED, Verifier

_NO_EXPLANATION = np.array([[b""]], object)
_MOST_APPLIED = 64  # rules for which the fallback was looked up are kept with it


@dataclass(frozen=True)
class Catalogue:
    """What the step needs of a version of the catalogue."""

    items: CatalogView
    verifier: Verifier
    applied: Callable[[bytes], Applied | None]


Draft = tuple[Entry[Catalogue], Stamp, np.ndarray, np.ndarray, np.ndarray]


class TritonPythonModel(Step[Draft]):
    """It reads a stamp and its catalogue, codes int64 [K + 3], scores float32 [K], blocked catalogue rows int32 [b].

    Behind the codes stand whether rules narrowed the beam, how many items they leave, and when the backbone was done.
    """

    def setup(self) -> None:
        bundle = self.bundle
        verifier = Verifier(bundle.catalog, bundle.index, bundle.voting())
        check_items(bundle.golden, bundle.catalog, bundle.layout, verifier)
        self.catalogues = self.versions(self.catalogue)
        refusals = Refusals(waiting_file(os.getppid()))
        self.metrics = Metrics(self.page, self.catalogues, self.parameters["catalog"], refusals)

    def catalogue(self, items: CatalogView, buckets: BucketView, masks: Callable[[], PrefixTable]) -> Catalogue:
        applied = kept(partial(self.rule_book(items).applied, items), _MOST_APPLIED)
        return Catalogue(items, Verifier(items, buckets, self.bundle.voting(items)), applied)

    def read(self, request: Any) -> Draft:
        stamp = checked_stamp(request)
        codes, scores = tensor(request, "draft_codes")[0], tensor(request, "draft_scores")[0]
        return stamped(self.catalogues, stamp), stamp, codes, scores, tensor(request, "blocked_rows")[0]

    def handed_ns(self, read: Draft) -> int:
        return int(read[2][-1])

    def run(self, inputs: list[Draft]) -> list[list[Any]]:
        answers: list[list[Any]] = [[]] * len(inputs)
        versions = [draft[0].version for draft in inputs]
        for version in set(versions):  # one, unless the catalogue changed between requests of this batch
            places = [place for place, own in enumerate(versions) if own == version]
            for place, answer in zip(places, self._run([inputs[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _run(self, inputs: list[Draft]) -> list[list[Any]]:
        """As `run`, for requests of one version."""
        entries, stamps, drafted, scores, blocked = zip(*inputs, strict=True)
        codes, narrowing, _ = np.split(np.stack(drafted), [-3, -1], 1)
        top_k = np.array([stamp.top_k for stamp in stamps])
        unknown = np.array([stamp.unknown for stamp in stamps])
        catalogue = entries[0].made
        applied = [catalogue.applied(stamp.rules) for stamp in stamps]
        histories = [stamp.history for stamp in stamps]
        result = catalogue.verifier.verify(codes, np.stack(scores), blocked, top_k, applied, histories)
        counts = np.stack([result.drafted, result.valid, unknown, result.filled], axis=1).astype(np.int32)
        voted = int(np.count_nonzero(result.source == VOTED))
        self.metrics.count(counts, voted, [stamp.began_ns for stamp in stamps])
        if result.ruled:
            self.metrics.count_rules(applied, result.ruled, narrowing[:, 0].astype(bool).tolist())
        item_ids = catalogue.items.ids_of(result.rows)[None]
        names = self.bundle.manifest.bundle_version, str(entries[0].version)
        version = np.array([[name.encode() for name in names]], object)
        explained = [_NO_EXPLANATION] * len(inputs)
        for number, ruled in result.ruled.items():
            one = applied[number]
            if one is not None and one.explain:
                narrowed, items = narrowing[number].tolist()
                told = json.dumps(explanation(ruled, bool(narrowed), items, *counts[number, :2].tolist())).encode()
                explained[number] = np.array([[told]], object)
        bounds = zip(result.offsets[:-1].tolist(), result.offsets[1:].tolist(), strict=True)
        return [
            [
                pb.Tensor("item_ids", item_ids[:, start:end]),
                pb.Tensor("scores", result.scores[None, start:end]),
                pb.Tensor("source", result.source[None, start:end]),
                pb.Tensor("counts", counts[i : i + 1]),
                pb.Tensor("version", version),
                pb.Tensor("explanation", explained[i]),
            ]
            for i, (start, end) in enumerate(bounds)
        ]

    def finalize(self) -> None:
        super().finalize()
        self.catalogues.close()
