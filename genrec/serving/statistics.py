"""What Triton counts of the ensemble's steps, as differences between two moments."""

from __future__ import annotations

from dataclasses import dataclass

import tritonclient.grpc as triton

from genrec.serving.repository import STEPS


@dataclass(frozen=True)
class StepCounts:
    """Of one step since the server's start. Times in seconds, summed over requests; a batch's time counts for each.

    requests: answered. executions: batches. total_s: with waiting. queue_s: waiting for the batcher. infer_s: in the
    model, with what other requests of the batch took.
    """

    requests: int
    executions: int
    total_s: float
    queue_s: float
    infer_s: float

    def since(self, before: StepCounts) -> StepCounts:
        """What was added after `before`."""
        return StepCounts(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))

    @property
    def batch(self) -> float:
        """Mean requests of a batch, 0 if there were none."""
        return self.requests / max(1, self.executions)

    def mean_ms(self, name: str) -> float:
        """Mean milliseconds of a request; `name` is the field without its "_s"."""
        return 1e3 * float(getattr(self, f"{name}_s")) / max(1, self.requests)


def read_step_counts(url: str) -> dict[str, StepCounts]:
    """The counts of every step of the server whose gRPC port is `url`. Triton counts a request a moment after it."""
    found = {}
    with triton.InferenceServerClient(url) as client:
        for name in STEPS:
            model = client.get_inference_statistics(name).model_stats[0]
            stats = model.inference_stats
            times = (stats.success.ns, stats.queue.ns, stats.compute_infer.ns)
            found[name] = StepCounts(stats.success.count, model.execution_count, *(ns / 1e9 for ns in times))
    return found
