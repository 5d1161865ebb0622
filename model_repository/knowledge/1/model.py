"""Knowledge texts, streamed: one request is one user's or item's text, its responses are pieces of it."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from genrec.errors import InvalidRequest
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.sender import Reason
from genrec.knowledge.texts import TextRequest
from genrec.knowledge.writer import TextWriter
from genrec.serving.step import open_folder, optional

# By name: the module has its classes only once a model is being made. With the status as gRPC names it, which a stream
# does not tell by itself: messages begin with it.
_CODES = {
    "refused": ("INVALID_ARG", "INVALID_ARGUMENT"),
    "overloaded": ("UNAVAILABLE", "UNAVAILABLE"),
    "cancelled": ("CANCELLED", "CANCELLED"),
    "failed": ("INTERNAL", "INTERNAL"),
}
OUTCOMES = ("written", *_CODES)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.model = KnowledgeModel(open_folder(parameters["knowledge"]))
        self.texts = pb.MetricFamily(
            name="genrec_texts_total", description="Knowledge texts asked for", kind=pb.MetricFamily.COUNTER
        )
        self.outcomes = {name: self.texts.Metric(labels={"outcome": name}) for name in OUTCOMES}
        verification, texts_at_once = parameters["verification"], int(parameters["texts_at_once"])
        self.writer = TextWriter(
            lambda: self.model.served(verification, texts_at_once), self.model.decode, pb.Logger.log_error
        )

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            stream = _Stream(request.get_response_sender(), self.outcomes)
            try:
                self.writer.submit(self._read(request), stream, whole=not streamed(request))
            except InvalidRequest as error:
                self.writer.refuse(stream, str(error))

    def finalize(self) -> None:
        self.writer.close()

    def _read(self, request: Any) -> TextRequest:
        history = optional(request, "history", lambda array: array[0].tolist(), None)
        item = optional(request, "item", lambda array: array[0, 0], None)
        most = optional(request, "max_new_tokens", lambda array: int(array[0, 0]), None)
        return self.model.request(history, item, most)


def streamed(request: Any) -> bool:
    """Whether the text is to come in pieces."""
    return bool(optional(request, "stream", lambda array: array[0, 0], True))


class _Stream:
    """Where the pieces of one text go; see `genrec.knowledge.sender.Stream`."""

    def __init__(self, sender: Any, outcomes: dict[str, Any]) -> None:
        self._sender, self._outcomes = sender, outcomes

    def cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def write(self, text: str, tokens: int, last: bool) -> None:
        outputs = [
            pb.Tensor("text", np.array([[text.encode()]], np.object_)),
            pb.Tensor("tokens", np.array([[tokens]], np.int32)),
        ]
        self._send(pb.InferenceResponse(outputs), "written" if last else None)

    def fail(self, message: str, reason: Reason) -> None:
        code, status = _CODES[reason]
        error = pb.TritonError(f"{status}: {message}", getattr(pb.TritonError, code))
        self._send(pb.InferenceResponse(error=error), reason)

    def _send(self, response: Any, outcome: str | None) -> None:
        """outcome: of the text, with its last response."""
        if outcome is not None:
            self._outcomes[outcome].increment(1)
        self._sender.send(response, flags=0 if outcome is None else pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
