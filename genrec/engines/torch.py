"""The PyTorch engine: the reference that every other engine must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genrec.engines.base import Engine
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint
from genrec.prefix_trie import PrefixTrie


class TorchEngine(Engine):
    """Runs a model of either decoder in float32 with PyTorch.

    model: the model, or the folder of its checkpoint. device: a torch device; by default the GPU if there is one.
    """

    def __init__(
        self,
        model: BackboneModel | Path,
        prefixes: PrefixTrie,
        beam_width: int,
        device: str | None = None,
    ) -> None:
        super().__init__(prefixes, beam_width)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = (load_checkpoint(model) if isinstance(model, Path) else model).to(self._device)
        self._masks = {
            id(trie): tuple(
                tuple(torch.tensor(array, device=self._device) for array in arrays)
                for arrays in (trie.bits, trie.first_child)
            )
            for trie in self._tries.values()
        }

    @torch.inference_mode()
    def _run(self, token_ids: np.ndarray, lengths: np.ndarray, trie: PrefixTrie) -> tuple[np.ndarray, np.ndarray]:
        tokens, sizes = torch.tensor(token_ids, device=self._device), torch.tensor(lengths, device=self._device)
        bits, first_child = self._masks[id(trie)]
        codes, scores = self._model.draft(tokens, sizes, bits, first_child, self.beam_width)
        return codes.cpu().numpy(), scores.cpu().numpy()
