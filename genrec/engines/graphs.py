"""Recorded drafts: one CUDA graph for each bucket of batch size and prompt length.

A replayed graph starts a pass's kernels as one piece, where PyTorch starts them one by one. It has fixed shapes and
fixed addresses, so a batch is copied into the buffers of the smallest bucket that holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from genrec.engines.buckets import Buckets

# Right-padded token ids int32 [B, S], lengths int32 [B] and rules' masks int64 [B, 2 L] -> tensors with B rows.
Draft = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
# Takes a call without arguments, which reads tensors that stay where they are; returns what does it again.
Call = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Call], Call]

_WARM_UP = 3  # calls before a recording: libraries choose their kernels and take their workspaces in the first ones


class _Recording(NamedTuple):
    """A bucket's buffers and its replay. host: as given; device: the same, which the replay reads; answers: copies on
    the host. Those on the host are pinned where the device is a GPU, so that copies need no detour and no wait."""

    host: tuple[Tensor, ...]
    device: tuple[Tensor, ...]
    replay: Call
    answers: tuple[Tensor, ...]


class RecordedDraft:
    """A draft that is recorded for each bucket when that is first asked for; what no bucket holds runs as it is.

    draft: moves what it is given to `device` itself. At most len(buckets) recordings are made, and none after `close`.
    One call at a time.
    """

    def __init__(self, draft: Draft, buckets: Buckets, device: torch.device, capture: Capture) -> None:
        self._draft, self._buckets, self._device, self._capture = draft, buckets, device, capture
        self._recorded: dict[tuple[int, int], _Recording] = {}
        self._closed = False

    def __call__(self, token_ids: Tensor, lengths: Tensor, rule_rows: Tensor) -> tuple[Tensor, ...]:
        """As `Draft`, from tensors on the CPU, and to there.

        After `close`, raises ValueError for a shape that no bucket holds, and RuntimeError for one without a recording.
        """
        batch, tokens = token_ids.shape
        bucket = self._buckets.holding(batch, tokens)
        with _current(self._device):
            if bucket is None:
                if self._closed:
                    raise ValueError(
                        f"a batch of {batch} prompts of up to {tokens} tokens is in no bucket; the largest has "
                        f"{self._buckets.batches[-1]} of {self._buckets.lengths[-1]}, and nothing runs unrecorded once "
                        "the engine is ready: start it with larger buckets"
                    )
                return self._draft(token_ids, lengths, rule_rows)
            given = token_ids, lengths, rule_rows
            if bucket not in self._recorded:
                if self._closed:
                    raise RuntimeError(
                        f"the bucket of {bucket[0]} prompts of {bucket[1]} tokens has no recording, and none is made "
                        "once the engine is ready: warm it up as it is used, with masks or without"
                    )
                self._recorded[bucket] = self._recording(bucket, given)
            recording = self._recorded[bucket]
            _fill(recording.host, given)
            for buffer, values in zip(recording.device, recording.host, strict=True):
                buffer.copy_(values, non_blocking=True)
            for kept, answer in zip(recording.answers, recording.replay(), strict=True):
                kept.copy_(answer, non_blocking=True)
            if self._device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            return tuple(kept[:batch].clone() for kept in recording.answers)

    def close(self) -> None:
        """Record nothing from now on."""
        self._closed = True

    def _recording(self, bucket: tuple[int, int], given: tuple[Tensor, Tensor, Tensor]) -> _Recording:
        pinned, (rows, _) = self._device.type == "cuda", bucket
        shapes = bucket, (rows,), (rows, given[2].shape[1])
        host = tuple(
            torch.zeros(shape, dtype=like.dtype, pin_memory=pinned) for shape, like in zip(shapes, given, strict=True)
        )
        _fill(host, given)
        own = tuple(each.to(self._device, copy=True) for each in host)
        replay = self._capture(lambda: self._draft(own[0], own[1], own[2]))
        answers = tuple(torch.empty_like(each, device="cpu", pin_memory=pinned) for each in replay())
        return _Recording(host, own, replay, answers)


def _fill(buffers: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> None:
    """Write a batch into buffers that have room for it.

    Rows behind it repeat its first request, which is sure to be one that the model can take.
    """
    batch, tokens = given[0].shape
    buffers[0][:, tokens:] = 0
    for buffer, values in zip((buffers[0][:, :tokens], *buffers[1:]), given, strict=True):
        buffer[:batch] = values
        buffer[batch:] = values[0]


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, on whose stream all of a call runs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


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
