"""The ONNX Runtime engine: prefill, decoder and beams as one graph, prefix masks as inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines import require_precision
from genrec.engines.base import EXACT, RULE_BYTES, Engine
from genrec.reporting.machine import processor_line

RULE_BITS, RULE_ROWS = "rule_bits", "rule_rows"  # inputs of a graph that takes rules
CODES, SCORES = "codes", "scores"
# By how much a score may differ from that in float32: int8 moves hidden states and every level's logits.
SCORE_TOLERANCES = {"auto": EXACT, "f32": EXACT, "int8": 0.25}
PREFIXES, LAST = "prefixes", "last_codes"  # the codes in two parts; older graphs do not have them


class OnnxEngine(Engine):
    """Runs an exported graph with ONNX Runtime.

    graph: the `.onnx` file. masks: a `PrefixTrie` for the graph of a bundle of format 2. threads: intra-op threads, 0
    for one per core. precision: what the graph is made for, "int8" or, also as "auto", "f32". provider: an execution
    provider's name. rule_bytes: as `Engine`'s.
    """

    def __init__(
        self,
        graph: Path,
        masks: PrefixTable | PrefixTrie,
        beam_width: int,
        threads: int = 0,
        precision: str = "f32",
        provider: str = "CPUExecutionProvider",
        rule_bytes: int = RULE_BYTES,
    ) -> None:
        """Raises ValueError for masks of another kind than the graph takes, and for int8 on a processor without it."""
        require_precision("onnx", precision)
        if precision == "int8" and not multiplies_int8():
            raise ValueError(
                "precision int8: this processor has no VNNI, without which sums of int8 overflow, and take hardly less "
                "time; use f32"
            )
        self.score_tolerance = SCORE_TOLERANCES[precision]
        self._graph, self._session = graph, open_session(graph, threads, provider)
        self._inputs = {found.name for found in self._session.get_inputs()}
        super().__init__(masks, beam_width, rule_bytes if RULE_ROWS in self._inputs else None)

    def _prepared(self, masks: PrefixTable | PrefixTrie) -> dict[str, np.ndarray]:
        remedy = "a bundle of format 2 drafts with its own prefixes only, make a newer one of it with `genrec export`"
        return mask_feeds(self._graph, self._inputs, masks, remedy)

    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, masks: dict[str, np.ndarray], rule_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        feeds = {"token_ids": token_ids, "lengths": lengths, **masks}
        if rule_rows is not None:
            feeds |= {RULE_BITS: self.rule_masks.bits, RULE_ROWS: rule_rows}
        codes, scores = self._session.run([CODES, SCORES], feeds)
        return codes, scores


def multiplies_int8() -> bool:
    """Whether this processor has instructions for products of int8: VNNI, which all with AMX have, too."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(processor_line("flags").split())


def open_session(graph: Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider") -> ort.InferenceSession:
    """ONNX Runtime on a graph, by its file or its bytes, as every session here runs it; arguments as `OnnxEngine`'s."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait for work by spinning keep others from their processor: the steps of the same server, or a pod's
    # neighbours (docs/performance.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, providers=[provider])


def graph_masks(masks: PrefixTable | PrefixTrie) -> dict[str, np.ndarray]:
    """The graph's mask inputs by name, in their order."""
    if isinstance(masks, PrefixTrie):
        named = {f"prefix_bits_{level}": bits for level, bits in enumerate(masks.bits)}
        return named | {f"first_child_{level}": children for level, children in enumerate(masks.first_child)}
    named = {f"mask_bits_{level}": bits for level, bits in enumerate(masks.bits)}
    return named | {f"mask_keys_{level}": keys for level, keys in enumerate(masks.keys, 1)}


def mask_feeds(graph: Path, inputs: set[str], masks: PrefixTable | PrefixTrie, remedy: str) -> dict[str, np.ndarray]:
    """`graph_masks` for a graph with these inputs. Raises ValueError, with the remedy, if it takes others."""
    feeds = graph_masks(masks)
    wanted = inputs - {"token_ids", "lengths", RULE_BITS, RULE_ROWS}
    if feeds.keys() != wanted:
        raise ValueError(
            f"{graph}: takes masks as {', '.join(sorted(wanted))}, not {', '.join(sorted(feeds))}; {remedy}"
        )
    return feeds
