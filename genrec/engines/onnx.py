"""The ONNX Runtime engine: prefill, decoder and beams as one graph, prefix masks as inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from genrec.catalog import PrefixTrie
from genrec.engines.base import Engine


class OnnxEngine(Engine):
    """Runs an exported graph with ONNX Runtime.

    graph: the `.onnx` file. threads: intra-op threads, 0 for one per core. provider: an execution provider's name.
    """

    def __init__(
        self,
        graph: Path,
        prefixes: PrefixTrie,
        beam_width: int,
        threads: int = 0,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        super().__init__(prefixes, beam_width)
        self._session = open_session(graph, threads, provider)
        self._masks = {id(trie): graph_masks(trie.bits, trie.first_child) for trie in self._tries.values()}

    def _run(self, token_ids: np.ndarray, lengths: np.ndarray, trie: PrefixTrie) -> tuple[np.ndarray, np.ndarray]:
        feeds = {"token_ids": token_ids, "lengths": lengths, **self._masks[id(trie)]}
        codes, scores = self._session.run(None, feeds)
        return codes, scores


def open_session(graph: Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider") -> ort.InferenceSession:
    """ONNX Runtime on a graph, by its file or its bytes, as every session here runs it; arguments as `OnnxEngine`'s."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, providers=[provider])


def graph_masks(bits: tuple, first_child: tuple) -> dict:
    """The graph's mask inputs by name, in their order; values of any array type."""
    named = {f"prefix_bits_{level}": array for level, array in enumerate(bits)}
    return named | {f"first_child_{level}": array for level, array in enumerate(first_child)}
