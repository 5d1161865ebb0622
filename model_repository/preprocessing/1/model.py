"""Step 1 of `recommend`: history and query -> prompt, blocked rows, stamp."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.catalog import BucketView, CatalogView, PrefixTable
from genrec.errors import TOO_MANY, InvalidRequest, Overloaded
from genrec.golden import check_prompt
from genrec.prompt import Preprocessor, Request
from genrec.serving.step import Stamp, Step, Told, optional
from genrec.serving.waiting import Gate, in_time, waiting_file

_NO_ITEMS = np.empty(0, object)
_LONGEST_US = 3_600_000_000  # longer timeouts mean "no hurry", and the largest would not fit into the stamp


class TritonPythonModel(Step[tuple[Request, int, int, int]]):
    """It reads a request, when it came, its deadline, both in ns on CLOCK_MONOTONIC, and its number."""

    waits = False

    def setup(self) -> None:
        self.timeout_us = 1000 * int(self.parameters["timeout_ms"])
        check_prompt(self.bundle.golden, self.preprocessor(self.bundle.catalog))
        self.catalogues = self.versions(self.preprocessor)
        self.tells_history = self.bundle.votes is not None
        self.gate = Gate(waiting_file(os.getppid()))

    def preprocessor(
        self, items: CatalogView, buckets: BucketView | None = None, masks: Callable[[], PrefixTable] | None = None
    ) -> Preprocessor:
        """What the step needs of a version of the catalogue."""
        bundle = self.bundle
        book = self.rule_book(items)
        return Preprocessor(items, bundle.layout, bundle.manifest.limits, bundle.query_tokenizer, book)

    def read(self, request: Any) -> tuple[Request, int, int, int]:
        left_us = min(request.timeout() or self.timeout_us, _LONGEST_US)
        now, told = time.monotonic_ns(), Told.of(request)
        ahead, expected_ns = self.gate.expected_ns()
        if not in_time(expected_ns, 1000 * left_us, told.sheddable):
            self.gate.refuse()
            raise Overloaded(
                f"{ahead} requests are waiting, which takes about {expected_ns / 1e6:.0f} ms, and this one has "
                f"{left_us / 1e3:.0f} ms{', may be shed' * told.sheddable}: {TOO_MANY}; allow more time or send "
                "fewer requests"
            )
        history = optional(request, "history", _items("history"), None)
        if history is None:
            raise InvalidRequest("history is missing; send the user's item ids, oldest first, [1, 0] if there are none")
        read = Request(
            history=history,
            exclude=optional(request, "exclude", _items("exclude"), _NO_ITEMS),
            top_k=optional(request, "top_k", lambda array: int(array[0, 0]), None),
            allow_history=optional(request, "allow_history", lambda array: bool(array[0, 0]), False),
            query=optional(request, "query", lambda array: bytes(array[0, 0]), b""),
            rules=optional(request, "rules", lambda array: bytes(array[0, 0]), b""),
        )
        self.catalogues.current.made.validate(read)
        # Not from when it came: deadlines do not feel a clock that is set.
        return read, now - told.waited_ns(), now + 1000 * left_us, self.gate.let_through()

    def run(self, inputs: list[tuple[Request, int, int, int]]) -> list[list[Any]]:
        entry = self.catalogues.current
        prepared = entry.made.prepare([request for request, *_ in inputs])
        handed = time.monotonic_ns()
        return [
            [
                pb.Tensor("input_ids", one.prompt[None]),
                pb.Tensor("blocked_rows", one.blocked[None]),
                Stamp(
                    *(one.top_k, one.unknown, entry.version, deadline, number, began, handed),
                    history=one.voters if self.tells_history else one.voters[:0],
                    rules=one.rules,
                ).tensor(),
            ]
            for one, (_, began, deadline, number) in zip(prepared, inputs, strict=True)
        ]

    def finalize(self) -> None:
        super().finalize()
        self.catalogues.close()
        self.gate.close()


def _items(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Reads one user's items: BYTES [1, n] -> object [n]."""

    def convert(array: np.ndarray) -> np.ndarray:
        if array.ndim != 2 or array.shape[0] != 1:
            raise InvalidRequest(
                f"{name} has shape {list(array.shape)}; send one user per request, [1, n]: the server forms batches"
            )
        return array[0]

    return convert
