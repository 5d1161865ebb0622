"""The PyTorch engine: in float32 the reference that every other engine must agree with, and the one for GPUs."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines.base import EXACT, RULE_BYTES, Engine
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import Capture, CudaGraphs, Draft, RecordedDraft
from genrec.engines.memory import plan_memory, require_room
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint
from genrec.model.masks import Masks, Rules, as_tensor, copy_rows

PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}
# By how much a score may differ from that in float32: half precision moves hidden states, hence every level's logits.
SCORE_TOLERANCES = {"f32": EXACT, "bf16": 0.25}


class TorchEngine(Engine):
    """Runs a model of either decoder with PyTorch.

    model: the model, which is moved and cast where it is, or the folder of its checkpoint. device: a torch device; by
    default the GPU if there is one. precision: of the backbone, of `PRECISIONS`, or "auto", bf16 on a GPU that computes
    in it and f32 elsewhere; logits, the draft head and the sums of scores are float32 in either. buckets: shapes that
    are recorded as CUDA graphs; None records nothing. capture: what records them, CUDA graphs by default. rule_bytes:
    as `Engine`'s.

    Recordings are made when a bucket is first asked for, and all of them by `warm_up`. From then on nothing is recorded
    for a request: one that no recording holds is refused. Only a table of another size, of `set_masks`, has all of them
    made again, before it returns; one of the same size is copied over the old one.
    """

    def __init__(
        self,
        model: BackboneModel | Path,
        masks: PrefixTable,
        beam_width: int,
        device: str | None = None,
        precision: str = "f32",
        buckets: Buckets | None = None,
        capture: Capture | None = None,
        rule_bytes: int = RULE_BYTES,
    ) -> None:
        """Raises ValueError for an unknown precision or device, for buckets that the model or the device cannot have,
        and, before it is loaded, for a checkpoint that does not fit into a GPU's free memory with all that it needs."""
        self._device = device_of(device)
        if precision == "auto":
            precision = "bf16" if computes_bf16(self._device) else "f32"
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
        self.precision, self.score_tolerance = precision, SCORE_TOLERANCES[precision]
        self.copies_masks = self._device.type != "cpu"
        if isinstance(model, Path):
            if (free := free_memory(self._device)) is not None:
                config = json.loads((model / "config.json").read_text(encoding="utf-8"))
                plan = plan_memory(config, masks, beam_width, rule_bytes, precision == "bf16", buckets)
                require_room(plan, free, str(self._device))
            model = load_checkpoint(model)
        # Cast before it is moved: the device never holds the weights twice.
        model.model.to(PRECISIONS[precision])
        self._model = model.to(self._device)
        self._buckets = self._capture = None
        if buckets is not None:
            longest, positions = buckets.lengths[-1], model.config.max_position_embeddings
            if longest > positions:
                raise ValueError(f"buckets: length {longest} is above the model's {positions} positions; leave it out")
            self._buckets, self._capture = buckets, capture or CudaGraphs(self._device)
        self._drafting = threading.Lock()  # recordings have buffers of their own, for one call at a time
        self._warm: tuple[np.ndarray, bool] | None = None  # what `warm_up` was given
        super().__init__(masks, beam_width, rule_bytes)

    @cached_property
    def _rule_bits(self) -> Tensor:
        """The rules' memory on the CPU, a copy on any other device."""
        return as_tensor(self.rule_masks.bits).to(self._device)

    def warm_up(self, prompt: np.ndarray, batch: int, masked: bool = True) -> None:
        """See `Engine`. Every bucket is recorded and run once, and none from then on."""
        if self._buckets is None:
            return super().warm_up(prompt, batch, masked)
        # The largest first: memory is then taken once.
        for rows in reversed(self._buckets.batches):
            for columns in reversed(self._buckets.lengths):
                self.draft([np.resize(prompt[:columns], columns)] * rows, masked=masked)
        self._warm = prompt, masked
        for ready in self._masks.values():
            ready.draft.close()
        return None

    @torch.inference_mode()  # tensors that were first made while drafting can be changed in no other
    def set_masks(self, table: PrefixTable) -> None:
        """See `Engine`. With recordings, a table of the same size is copied to where the old one is on the device."""
        ready: _Ready = self._masks[True]
        if self._buckets is not None and self.copies_masks and ready.tensors.same_sizes(table):
            with self._drafting:
                ready.tensors.take(table)
                self._masks = {**self._masks, True: ready._replace(table=table)}
            self._follow(table)
            return
        super().set_masks(table)
        if self._warm is not None:
            self.warm_up(self._warm[0], 1, self._warm[1])

    @torch.inference_mode()
    def update_masks(self, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """See `Engine`. Recordings see it too: the copy stays where it is."""
        ready: _Ready = self._masks[True]
        if self.copies_masks:
            ready.tensors.update(ready.table, changed)

    @torch.inference_mode()
    def update_rules(self, rows: np.ndarray) -> None:
        """See `Engine`. Recordings see it too."""
        if self.copies_masks:
            copy_rows(self._rule_bits, self.rule_masks.bits, rows)

    def _prepared(self, masks: PrefixTable | PrefixTrie) -> _Ready:
        if not isinstance(masks, PrefixTable):
            raise ValueError("this engine drafts with a PrefixTable; build one of the bundle's semantic IDs")
        tensors = Masks.of(masks, self._device)

        def draft(token_ids: Tensor, lengths: Tensor, rule_rows: Tensor) -> tuple[Tensor, ...]:
            tokens, sizes, rows = (each.to(self._device) for each in (token_ids, lengths, rule_rows))
            ruled = tensors._replace(rules=Rules(self._rule_bits, rows))
            return self._model.draft(tokens, sizes, ruled, self.beam_width)[:2]

        if self._buckets is None or self._capture is None:
            return _Ready(masks, tensors, draft)
        return _Ready(masks, tensors, RecordedDraft(draft, self._buckets, self._device, self._capture))

    @torch.inference_mode()
    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, masks: _Ready, rule_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        assert rule_rows is not None
        given = torch.tensor(token_ids), torch.tensor(lengths), torch.tensor(rule_rows)
        if self._buckets is None:
            codes, scores = masks.draft(*given)
        else:
            with self._drafting:
                codes, scores = masks.draft(*given)
        return codes.cpu().numpy(), scores.cpu().numpy()


class _Ready(NamedTuple):
    """A table, its arrays on the device, and the model's draft with them."""

    table: PrefixTable
    tensors: Masks
    draft: Draft | RecordedDraft


def device_of(name: str | None) -> torch.device:
    """The device of that name; by default, for None or "", the GPU if there is one. Raises ValueError for a GPU that
    is not there."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here; look at nvidia-smi, "
            "install a CUDA build of torch, or use device cpu"
        )
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether it is a GPU with products of bf16: compute capability 8.0 and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for any other device, whose memory is not planned."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
