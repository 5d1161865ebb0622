"""Knowledge texts, streamed: one request is one user's or item's text, its responses are pieces of it."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

from genrec.errors import InvalidRequest
from genrec.knowledge.model import VERIFICATIONS, KnowledgeModel
from genrec.knowledge.writer import TextWriter
from genrec.serving.step import optional

# By name: the module has its classes only once a model is being made.
_CODES = {
    "refused": "INVALID_ARG",
    "overloaded": "UNAVAILABLE",
    "cancelled": "CANCELLED",
    "failed": "INTERNAL",
}
OUTCOMES = ("written", *_CODES)


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.model = KnowledgeModel(Path(parameters["knowledge"]))
        self.decoder = self.model.decoder(
            VERIFICATIONS[parameters["verification"]], int(parameters["texts_at_once"]), grow=True
        )
        self.texts = pb.MetricFamily(
            name="genrec_texts_total", description="Knowledge texts asked for", kind=pb.MetricFamily.COUNTER
        )
        self.outcomes = {name: self.texts.Metric(labels={"outcome": name}) for name in OUTCOMES}
        self.writer = TextWriter(self.decoder, self.model.text, pb.Logger.log_error)

    def execute(self, requests):
        for request in requests:
            stream = _Stream(request.get_response_sender(), self.outcomes)
            try:
                self.writer.submit(self._read(request), stream)
            except InvalidRequest as error:
                stream.fail(str(error), "refused")

    def finalize(self):
        self.writer.close()

    def _read(self, request):
        history = optional(request, "history", lambda array: array[0].tolist(), None)
        item = optional(request, "item", lambda array: array[0, 0], None)
        most = optional(request, "max_new_tokens", lambda array: int(array[0, 0]), None)
        return self.model.request(history, item, most)


class _Stream:
    """Where the pieces of one text go; see `genrec.knowledge.writer.Stream`."""

    def __init__(self, sender, outcomes):
        self._sender, self._outcomes = sender, outcomes

    def cancelled(self):
        return self._sender.is_cancelled()

    def write(self, text, tokens, last):
        outputs = [
            pb.Tensor("text", np.array([[text.encode()]], np.object_)),
            pb.Tensor("tokens", np.array([[tokens]], np.int32)),
        ]
        self._send(pb.InferenceResponse(outputs), "written" if last else None)

    def fail(self, message, reason):
        self._send(pb.InferenceResponse(error=pb.TritonError(message, getattr(pb.TritonError, _CODES[reason]))), reason)

    def _send(self, response, outcome):
        last = outcome is not None
        if last:
            self._outcomes[outcome].increment(1)
        self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
