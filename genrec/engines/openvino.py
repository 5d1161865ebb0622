"""The OpenVINO engine: the graph that ONNX Runtime runs, on the CPU, in bf16 where the processor is made for it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openvino as ov
from numpy.core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]

from genrec.catalog import PrefixTable, PrefixTrie, SemanticIdSpace
from genrec.catalog.rule_masks import chunks_of
from genrec.engines import require_precision
from genrec.engines.base import EXACT, RULE_BYTES, Engine
from genrec.engines.buckets import Buckets
from genrec.engines.onnx import LAST, PREFIXES, RULE_BITS, RULE_ROWS, SCORES, mask_feeds
from genrec.engines.openvino_graph import read_graph

# By how much a score may differ from that in float32: half precision moves hidden states and every level's logits.
SCORE_TOLERANCES = {"f32": EXACT, "bf16": 0.25}
_LARGEST = np.iinfo(np.int32).max + 1  # numbers that 32 bits hold
_SHORTEST, _BATCH = 16, 16  # tokens of the shortest bucket; prompts of the largest one, before a warm-up says


class OpenVinoEngine(Engine):
    """Runs an exported graph with OpenVINO on the CPU.

    graph: the `.onnx` file. longest_prompt: tokens of the longest prompt. threads: of one call, 0 for one per core.
    precision: "f32", "bf16" or "auto"; that is bf16 where the processor multiplies matrices in it (AMX), else f32.
    rule_bytes: as `Engine`'s.

    A shape that comes for the first time takes about twice as long. So batches are padded to `Buckets`, and `warm_up`
    runs each of them once.
    """

    def __init__(
        self,
        graph: Path,
        masks: PrefixTable | PrefixTrie,
        beam_width: int,
        longest_prompt: int,
        threads: int = 0,
        precision: str = "auto",
        rule_bytes: int = RULE_BYTES,
    ) -> None:
        """Raises ValueError for a processor without AVX-512, for a graph from before there was this engine, for
        semantic IDs whose prefixes need more than 32 bits, for masks of another kind than the graph takes, and for a
        precision that is not to be had."""
        if not runs_here():
            raise ValueError(
                "engine openvino: this processor has no AVX-512, or ONEDNN_MAX_CPU_ISA forbids it, and what OpenVINO "
                "has for others gives wrong numbers; use the onnx engine, which is as fast there"
            )
        if not isinstance(masks, PrefixTable):
            raise ValueError(f"{graph}: {_TOO_OLD}")
        self._graph, self._space = graph, masks.space
        core = ov.Core()
        self.precision = _chosen(precision, _capabilities(core))
        self.score_tolerance = SCORE_TOLERANCES[self.precision]
        try:
            model = read_graph(graph, (PREFIXES, LAST, SCORES), _largest_key(self._space))
        except ValueError as error:
            raise ValueError(f"{error}: {_TOO_OLD}") from error
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # other processes share the cores
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self._inputs = {parameter.get_friendly_name() for parameter in model.get_parameters()}
        self._longest = longest_prompt
        self._buckets = Buckets.up_to(longest_prompt, _BATCH, _SHORTEST)
        self._running = threading.Lock()  # a request of OpenVINO's takes one call at a time
        super().__init__(masks, beam_width, rule_bytes)

    def warm_up(self, prompt: np.ndarray, batch: int, masked: bool = True) -> None:
        """See `Engine`. Batches are padded to that size at most from now on, and every padded shape is run once."""
        self._buckets = Buckets.up_to(self._longest, batch, _SHORTEST)
        # The largest first: memory is then taken once.
        for rows in reversed(self._buckets.batches):
            for columns in reversed(self._buckets.lengths):
                tokens = np.resize(prompt[:columns], columns)
                self.draft([tokens] * rows, masked=masked)

    def _prepared(self, masks: PrefixTable | PrefixTrie) -> _Ready:
        feeds = mask_feeds(self._graph, self._inputs, masks, "build them for the semantic IDs of this bundle")
        arrays = {**feeds, RULE_BITS: self.rule_masks.bits}
        ready = _Ready(self._compiled.create_infer_request(), tuple(arrays.values()))
        for name, array in arrays.items():
            ready.request.set_tensor(name, _shared(array))
        return ready

    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, masks: _Ready, rule_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        assert rule_rows is not None
        batch = len(token_ids)
        token_ids, lengths, rule_rows = self._padded(token_ids, lengths, rule_rows)
        feeds = {"token_ids": token_ids, "lengths": lengths, RULE_ROWS: rule_rows}
        with self._running:
            masks.request.infer(feeds, share_inputs=True)
            prefixes, last, scores = (masks.request.get_output_tensor(at).data[:batch] for at in range(3))
            codes = prefixes + last.astype(np.int64) * self._space.radix[-1]
            return codes, scores.copy()

    def _padded(self, token_ids: np.ndarray, lengths: np.ndarray, rule_rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same in the shape of a bucket, if one holds it: [B, S], [B] and [B, 2 L]."""
        batch, tokens = token_ids.shape
        bucket = self._buckets.holding(batch, tokens)
        if bucket is None or bucket == token_ids.shape:
            return token_ids, lengths, rule_rows
        # Rows behind the batch repeat its first request, which is sure to be one that the model can take.
        rows = np.zeros(bucket[0], np.intp)
        rows[:batch] = np.arange(batch)
        padded = np.zeros(bucket, np.int32)
        padded[:, :tokens] = token_ids[rows]
        return padded, lengths[rows], rule_rows[rows]


def runs_here() -> bool:
    """Whether OpenVINO may use AVX-512. What it has for AVX2 reduces short and inner axes wrongly (2026.4.0)."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return bool(__cpu_features__.get("AVX512F")) and (
        not allowed or allowed in ("ALL", "DEFAULT") or "AVX512" in allowed
    )


def precision_here(asked: str = "auto") -> str:
    """What an engine computes in on this processor, "f32" or "bf16". Raises ValueError for what is not to be had."""
    return _chosen(asked, _capabilities(ov.Core()))


def _capabilities(core: ov.Core) -> list[str]:
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


_TOO_OLD = (
    "this graph is from before there was the OpenVINO engine; make a newer bundle with `genrec export BUNDLE OUT`"
)


def _chosen(precision: str, capabilities: list[str]) -> str:
    """The precision to compute in, of what is asked for and what OpenVINO says of the processor. Raises ValueError."""
    require_precision("openvino", precision)
    if precision == "auto":
        # OpenVINO names BF16 also where it only emulates it, slower than f32 by far. FP16 goes with AMX.
        return "bf16" if {"BF16", "FP16"} <= set(capabilities) else "f32"
    if precision == "bf16" and "BF16" not in capabilities:
        raise ValueError(f"precision bf16: this processor computes {', '.join(capabilities)} only; use f32 or auto")
    return precision


def _largest_key(space: SemanticIdSpace) -> int:
    """The number of keys of the level that has most. Raises ValueError if 32 bits do not hold them."""
    keys = [int(radix) * chunks_of(size) for radix, size in zip(space.radix, space.levels, strict=True)]
    largest = max(keys)
    if largest > _LARGEST:
        raise ValueError(
            f"levels {space.levels}: level {keys.index(largest)} has {largest} prefixes to look up, and OpenVINO holds "
            f"no more than {_LARGEST}, 32 bits; use the onnx engine"
        )
    return largest


class _Ready(NamedTuple):
    """A request that reads masks in their own memory, which may change, and the arrays whose memory it is.

    OpenVINO does not keep them alive.
    """

    request: ov.InferRequest
    arrays: tuple[np.ndarray, ...]


class _Writable:
    """An array's memory, said to be writable, as OpenVINO wants it of what it reads in place; it never writes there.

    Masks may be mapped read-only.
    """

    def __init__(self, array: np.ndarray) -> None:
        described = array.__array_interface__
        self._array, self.__array_interface__ = array, described | {"data": (described["data"][0], False)}


def _shared(array: np.ndarray) -> ov.Tensor:
    """A tensor in the array's own memory."""
    return ov.Tensor(np.asarray(_Writable(array)), shared_memory=True)
