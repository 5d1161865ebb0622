"""What the engines over TensorRT-LLM share: the LLM, its model inside this process, and the model's masks and rules."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines.base import EXACT, RULE_BYTES, Engine
from genrec.engines.tensorrt_llm.contract import RELEASE, RULE_TOKENS
from genrec.engines.tensorrt_llm.folder import leaves_room, read_folder

# A backbone in half precision: log-probabilities that are sums over the levels differ by so much from float32's.
SCORE_TOLERANCES = {"bfloat16": 0.25, "float16": 0.05}


class InsideEngine(Engine):
    """An engine whose model runs inside TensorRT-LLM.

    folder: of `genrec export-tensorrt-llm`, with config.json, the weights and the arguments of `tensorrt_llm.LLM`.
    masks, beam_width: the bundle's. max_prompt: tokens of the longest prompt. arguments: of `tensorrt_llm.LLM`, instead
    of the folder's. Drafts are always masked: the masks are inside the model, which opens the bundle itself.
    rule_bytes: as `Engine`'s; rules are taken if the arguments leave room for one more token, which tells the model
    which rule a request has.

    The worker shares this process (TLLM_WORKER_USE_SINGLE_PROCESS=1) unless that variable is set to 0: no MPI is then
    needed, which Triton's Python backend does not start its models with. Nor could masks be changed in another process.
    """

    copies_masks = True

    def __init__(
        self,
        folder: Path,
        masks: PrefixTable,
        beam_width: int,
        max_prompt: int,
        rule_bytes: int = RULE_BYTES,
        **arguments: Any,
    ) -> None:
        """Raises ValueError if the folder is missing or cannot be served, ImportError without the package."""
        self._max_prompt = max_prompt
        config, arguments = read_folder(folder, arguments, max_prompt)
        super().__init__(masks, beam_width, rule_bytes if leaves_room(arguments, max_prompt + RULE_TOKENS) else None)
        self._vocabulary = int(config["vocab_size"])
        self._arguments = arguments
        self.score_tolerance = SCORE_TOLERANCES.get(config["dtype"], EXACT)
        os.environ.setdefault("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
        forget_mpi()
        try:
            from tensorrt_llm import LLM, __version__

            from genrec.engines.tensorrt_llm.modeling import SERVING  # registers the model, too
        except ImportError as error:
            raise ImportError(f"{error}; TensorRT-LLM {RELEASE} has to be installed where this engine runs") from error
        self._require_release(__version__)
        before = set(SERVING)
        self._llm = LLM(model=str(folder), **arguments)
        self._models = set(SERVING) - before
        self._rule_tokens: deque[int] = deque()
        if self._rule_masks is not None:
            for model in self._models:
                self._rule_tokens = deque(model.set_rules(self._rule_masks))

    def _require_release(self, release: str) -> None:
        """Raise ValueError if this engine cannot run on a release of TensorRT-LLM."""

    def close(self) -> None:
        """End the model."""
        self._llm.shutdown()
        self._models.clear()

    def set_masks(self, table: PrefixTable) -> None:
        """See `Engine`. Raises RuntimeError if the model runs in another process."""
        for model in self._reached():
            model.set_masks(table)
        self._follow(table)

    def update_masks(self, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """See `Engine`. Raises RuntimeError if the model runs in another process."""
        for model in self._reached():
            model.update_masks(changed)

    def update_rules(self, rows: np.ndarray) -> None:
        """See `Engine`. Raises RuntimeError if the model runs in another process."""
        for model in self._reached():
            model.update_rules(rows)

    def _reached(self) -> set[Any]:
        if not self._models:
            raise RuntimeError(
                "the model runs in another process, where its masks cannot be changed, nor rules be told; "
                "do not set TLLM_WORKER_USE_SINGLE_PROCESS to 0"
            )
        return self._models

    def _prepared(self, masks: PrefixTable | PrefixTrie) -> PrefixTable | PrefixTrie:
        return masks

    def _require_masked(self, masks: PrefixTable | PrefixTrie) -> None:
        if masks is self._masks[False]:
            raise ValueError("masked is false, but TensorRT-LLM drafts with masks only; use the onnx or torch engine")

    def _check_prompt(self, prompt: np.ndarray) -> None:
        # Inside the model, a token without an embedding is a fault of the device, which ends every request.
        if prompt.size > self._max_prompt:
            raise ValueError(f"the prompt has {prompt.size} tokens; the model takes at most {self._max_prompt}")
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            raise ValueError(
                f"the prompt has tokens {prompt.min()} to {prompt.max()}; the model knows 0 to {self._vocabulary - 1}"
            )


def forget_mpi() -> None:
    """Take inherited variables of MPI out of the environment.

    TensorRT-LLM starts MPI when it is imported. With the variables of a launcher of Triton's it would wait for ranks
    that never come; upstream's own model.py clears them too.
    """
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMIX_"))]:
        del os.environ[name]
