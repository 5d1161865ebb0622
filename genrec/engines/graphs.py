"""Recorded drafts: one CUDA graph for each bucket of batch size and prompt length.

A replayed graph starts a pass's kernels as one piece, where PyTorch starts them one by one. It has fixed shapes and
fixed addresses, so a batch is copied into the buffers of the smallest bucket that holds it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genrec.engines.buckets import Buckets

# Right-padded token ids int32 [B, S], lengths int32 [B] and rules' masks int64 [B, 2 L] -> tensors with B rows.
Draft = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
# Takes a call without arguments, which reads tensors that stay where they are; returns what does it again.
Call = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Call], Call]

_WARM_UP = 3  # calls before a recording: libraries choose their kernels and take their workspaces in the first ones


class RecordedDraft:
    """A draft that is recorded for each bucket when that is first asked for; what no bucket holds runs as it is.

    draft: moves what it is given to `device` itself. At most len(buckets) recordings are made. Answers are views of
    buffers that the next call overwrites: copy them first.
    """

    def __init__(self, draft: Draft, buckets: Buckets, device: torch.device, capture: Capture) -> None:
        self._draft, self._buckets, self._device, self._capture = draft, buckets, device, capture
        self._recorded: dict[tuple[int, int], tuple[tuple[Tensor, Tensor, Tensor], Call]] = {}

    def __call__(self, token_ids: Tensor, lengths: Tensor, rule_rows: Tensor) -> tuple[Tensor, ...]:
        """As `Draft`, from tensors on the CPU."""
        batch, tokens = token_ids.shape
        bucket = self._buckets.holding(batch, tokens)
        if bucket is None:
            return self._draft(token_ids, lengths, rule_rows)
        # Rows behind the batch repeat its first request, which is sure to be one that the model can take.
        row = torch.arange(bucket[0])
        row[batch:] = 0
        padded = torch.zeros(bucket, dtype=torch.int32)
        padded[:, :tokens] = token_ids[row]
        given = padded, lengths[row], rule_rows[row]
        if bucket not in self._recorded:
            own = padded.to(self._device), given[1].to(self._device), given[2].to(self._device)
            self._recorded[bucket] = own, self._capture(lambda: self._draft(*own))
        static, replay = self._recorded[bucket]
        for buffer, values in zip(static, given, strict=True):
            buffer.copy_(values)
        return tuple(answer[:batch] for answer in replay())


def call_again(call: Call) -> Call:
    """A capture that records nothing: the replay is the call itself. For tests, and devices without graphs."""
    return call


class CudaGraphs:
    """A capture with CUDA graphs on `device`. All of them share one pool of memory.

    That is safe because no two replay at the same time, each writes what it reads, and the answers' memory, which the
    replays hold on to, is given to no other.
    """

    def __init__(self, device: torch.device) -> None:
        """Raises ValueError if `device` has no CUDA graphs."""
        if device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, not {device}: leave the buckets out, or choose another")
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    call()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                answers = call()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return answers

        return replay
