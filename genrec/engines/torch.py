"""The PyTorch engine: the reference that every other engine must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genrec.engines.base import Engine
from genrec.model.nezha import NezhaModel
from genrec.prefix_trie import PrefixTrie


class TorchEngine(Engine):
    """Runs a checkpoint in float32 with PyTorch.

    checkpoint: folder with config.json and model.safetensors. device: a torch device, e.g. "cpu" or "cuda".
    """

    def __init__(
        self, checkpoint: Path, prefixes: PrefixTrie, unrestricted: PrefixTrie, beam_width: int, device: str = "cpu"
    ) -> None:
        super().__init__(prefixes, unrestricted, beam_width)
        self._device = torch.device(device)
        self._model = NezhaModel.load_checkpoint(checkpoint).to(self._device)
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
