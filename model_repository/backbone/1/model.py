"""Step 2 of `recommend`: one prefill and the draft head's beam -> drafted semantic IDs."""

import triton_python_backend_utils as pb

from genrec.engines import open_engine
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
        self.checked_stamp(request)
        return tensor(request, "input_ids")[0]

    def run(self, inputs):
        drafts = self.engine.draft(inputs, masked=self.masked)
        return [
            [pb.Tensor("draft_codes", drafts.codes[i : i + 1]), pb.Tensor("draft_scores", drafts.scores[i : i + 1])]
            for i in range(len(inputs))
        ]
