"""The PyTorch engine: in float32 the reference that every other engine must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genrec.catalog import PrefixTrie
from genrec.engines.base import Engine
from genrec.engines.graphs import Buckets, Capture, CudaGraphs, Draft, RecordedDraft
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
# By how much a score may differ from that in float32: half precision moves hidden states, hence every level's logits.
SCORE_TOLERANCES = {"float32": 1e-3, "bf16": 0.25}


class TorchEngine(Engine):
    """Runs a model of either decoder with PyTorch.

    model: the model, which is moved and cast where it is, or the folder of its checkpoint. device: a torch device; by
    default the GPU if there is one. precision: of the backbone, of `PRECISIONS`; logits, the draft head and the sums of
    scores are float32 in either. buckets: shapes that are recorded as CUDA graphs when first asked for; None records
    nothing. capture: what records them, CUDA graphs by default.
    """

    def __init__(
        self,
        model: BackboneModel | Path,
        prefixes: PrefixTrie,
        beam_width: int,
        device: str | None = None,
        precision: str = "float32",
        buckets: Buckets | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Raises ValueError for an unknown precision, and for buckets that the model or the device cannot have."""
        super().__init__(prefixes, beam_width)
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
        self.score_tolerance = SCORE_TOLERANCES[precision]
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = load_checkpoint(model) if isinstance(model, Path) else model
        self._model = model.to(self._device)
        self._model.model.to(PRECISIONS[precision])
        self._drafts = {id(trie): self._draft_within(trie) for trie in self._tries.values()}
        if buckets is not None:
            longest, positions = buckets.lengths[-1], model.config.max_position_embeddings
            if longest > positions:
                raise ValueError(f"buckets: length {longest} is above the model's {positions} positions; leave it out")
            capture = capture or CudaGraphs(self._device)
            for key, draft in self._drafts.items():
                self._drafts[key] = RecordedDraft(draft, buckets, self._device, capture)

    def _draft_within(self, trie: PrefixTrie) -> Draft:
        """The model's draft with the masks of `trie`."""
        bits, first_child = (
            tuple(torch.tensor(array, device=self._device) for array in arrays)
            for arrays in (trie.bits, trie.first_child)
        )

        def draft(token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
            tokens, sizes = token_ids.to(self._device), lengths.to(self._device)
            return self._model.draft(tokens, sizes, bits, first_child, self.beam_width)

        return draft

    @torch.inference_mode()
    def _run(self, token_ids: np.ndarray, lengths: np.ndarray, trie: PrefixTrie) -> tuple[np.ndarray, np.ndarray]:
        codes, scores = self._drafts[id(trie)](torch.tensor(token_ids), torch.tensor(lengths))
        return codes.cpu().numpy(), scores.cpu().numpy()
