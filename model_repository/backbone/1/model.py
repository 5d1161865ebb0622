"""Step 2 of `recommend`: one prefill and the draft head's beam -> drafted semantic IDs."""

import triton_python_backend_utils as pb

from genrec.engines import open_engine
from genrec.engines.base import InFlightEngine
from genrec.errors import InvalidRequest
from genrec.golden import check_drafts
from genrec.serving.step import Step, tensor


class TritonPythonModel(Step):
    def setup(self) -> None:
        options = {"threads": int(self.parameters["threads"])} if self.parameters["engine"] == "onnx" else {}
        self.engine = open_engine(self.bundle, self.parameters["engine"], **options)
        self.masked = self.parameters["masked"] == "true"
        golden = self.bundle.golden
        self.engine.draft([golden["prompt"]] * self.max_batch_size, masked=self.masked)  # warm-up at full size
        check_drafts(golden, self.engine)

    def read(self, request):
        stamp = self.checked_stamp(request)
        return tensor(request, "input_ids")[0], stamp.deadline_ns

    def run(self, inputs):
        drafts = self.engine.draft([prompt for prompt, _ in inputs], masked=self.masked)
        return [tensors(drafts, i) for i in range(len(inputs))]

    def execute(self, requests):
        if isinstance(self.engine, InFlightEngine):
            return self.execute_in_flight(requests, self.begin, tensors)
        return super().execute(requests)

    def begin(self, read, cancelled):
        prompt, deadline_ns = read
        try:
            return self.engine.submit(prompt, deadline_ns, cancelled)
        except ValueError as error:
            raise InvalidRequest(f"input_ids: {error}") from error

    def finalize(self) -> None:
        self.engine.close()


def tensors(drafts, i=0):
    """The outputs of the i-th request of a batch."""
    return [pb.Tensor("draft_codes", drafts.codes[i : i + 1]), pb.Tensor("draft_scores", drafts.scores[i : i + 1])]
