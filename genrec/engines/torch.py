"""The PyTorch engine: in float32 the reference that every other engine must agree with."""

from __future__ import annotations

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
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint
from genrec.model.masks import Masks, Rules, as_tensor, copy_rows

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
# By how much a score may differ from that in float32: half precision moves hidden states, hence every level's logits.
SCORE_TOLERANCES = {"float32": EXACT, "bf16": 0.25}


class TorchEngine(Engine):
    """Runs a model of either decoder with PyTorch.

    model: the model, which is moved and cast where it is, or the folder of its checkpoint. device: a torch device; by
    default the GPU if there is one. precision: of the backbone, of `PRECISIONS`; logits, the draft head and the sums of
    scores are float32 in either. buckets: shapes that are recorded as CUDA graphs when first asked for, and again after
    `set_masks`; None records nothing. capture: what records them, CUDA graphs by default. rule_bytes: as `Engine`'s.
    """

    def __init__(
        self,
        model: BackboneModel | Path,
        masks: PrefixTable,
        beam_width: int,
        device: str | None = None,
        precision: str = "float32",
        buckets: Buckets | None = None,
        capture: Capture | None = None,
        rule_bytes: int = RULE_BYTES,
    ) -> None:
        """Raises ValueError for an unknown precision, and for buckets that the model or the device cannot have."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
        self.score_tolerance = SCORE_TOLERANCES[precision]
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.copies_masks = self._device.type != "cpu"
        model = load_checkpoint(model) if isinstance(model, Path) else model
        self._model = model.to(self._device)
        self._model.model.to(PRECISIONS[precision])
        self._buckets = self._capture = None
        if buckets is not None:
            longest, positions = buckets.lengths[-1], model.config.max_position_embeddings
            if longest > positions:
                raise ValueError(f"buckets: length {longest} is above the model's {positions} positions; leave it out")
            self._buckets, self._capture = buckets, capture or CudaGraphs(self._device)
        super().__init__(masks, beam_width, rule_bytes)

    @cached_property
    def _rule_bits(self) -> Tensor:
        """The rules' memory on the CPU, a copy on any other device."""
        return as_tensor(self.rule_masks.bits).to(self._device)

    def update_masks(self, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """See `Engine`. Recordings see it too: the copy stays where it is."""
        ready: _Ready = self._masks[True]
        if self.copies_masks:
            ready.tensors.update(ready.table, changed)

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
        codes, scores = masks.draft(torch.tensor(token_ids), torch.tensor(lengths), torch.tensor(rule_rows))
        return codes.cpu().numpy(), scores.cpu().numpy()


class _Ready(NamedTuple):
    """A table, its arrays on the device, and the model's draft with them."""

    table: PrefixTable
    tensors: Masks
    draft: Draft
