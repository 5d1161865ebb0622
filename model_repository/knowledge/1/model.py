"""Knowledge texts, streamed: one request is one user's or item's text, its responses are pieces of it."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

from genrec.knowledge.model import VERIFICATIONS, KnowledgeModel
from genrec.preprocessor import InvalidRequest
from genrec.serving.step import optional
from genrec.serving.texts import TextWriter


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        self.model = KnowledgeModel(Path(parameters["knowledge"]))
        self.decoder = self.model.decoder(
            VERIFICATIONS[parameters["verification"]], int(parameters["texts_at_once"]), grow=True
        )
        self.writer = TextWriter(self.decoder, self.model.text, pb.Logger.log_error)

    def execute(self, requests):
        for request in requests:
            stream = _Stream(request.get_response_sender())
            try:
                self.writer.submit(self._read(request), stream)
            except InvalidRequest as error:
                stream.fail(str(error), refused=True)

    def finalize(self):
        self.writer.close()

    def _read(self, request):
        history = optional(request, "history", lambda array: array[0].tolist(), None)
        item = optional(request, "item", lambda array: array[0, 0], None)
        most = optional(request, "max_new_tokens", lambda array: int(array[0, 0]), None)
        return self.model.request(history, item, most)


class _Stream:
    """Where the pieces of one text go; see `genrec.serving.texts.Stream`."""

    def __init__(self, sender):
        self._sender = sender

    def cancelled(self):
        return self._sender.is_cancelled()

    def write(self, text, tokens, last):
        outputs = [
            pb.Tensor("text", np.array([[text.encode()]], np.object_)),
            pb.Tensor("tokens", np.array([[tokens]], np.int32)),
        ]
        self._send(pb.InferenceResponse(outputs), last)

    def fail(self, message, refused=False):
        code = pb.TritonError.INVALID_ARG if refused else pb.TritonError.UNAVAILABLE
        self._send(pb.InferenceResponse(error=pb.TritonError(message, code)), True)

    def _send(self, response, last):
        self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
