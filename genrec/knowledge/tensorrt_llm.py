"""Drafts from retrieval pools for TensorRT-LLM: the user-provided drafter of its speculative decoding.

from tensorrt_llm import LLM
from tensorrt_llm.llmapi import UserProvidedDecodingConfig

drafter = RetrievalDrafter(Path("build/knowledge/pools"), groups)
config = UserProvidedDecodingConfig(drafter=drafter, max_draft_len=drafter.max_draft_len)
LLM("build/knowledge/model", speculative_config=config, disable_overlap_scheduler=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorrt_llm._torch.speculative.drafter import Drafter

from genrec.knowledge.continuations import MAX_DEPTH, MAX_NODES
from genrec.knowledge.drafter import PoolDrafter, RunningText
from genrec.knowledge.pools import GLOBAL, Pools

if TYPE_CHECKING:
    from tensorrt_llm._torch.pyexecutor.scheduler import ScheduledRequests


class RetrievalDrafter(Drafter):
    """Drafts of every running request the branch of its token tree on which most tokens may be expected to hold.

    A branch is all that fits into TensorRT-LLM's linear drafts, and every draft is filled up to `max_draft_len`
    there, so that a longer one costs no more.

    pools: a folder of pools, such as a knowledge folder's; each worker process reads it for itself. groups: the group
    of a request by its prompt, `prompt.astype(np.int32).tobytes()`; prompts that are not there draft from the pool of
    all texts. Add to it while requests come only if the model runs in this process. max_draft_len: 1 to 24.
    """

    def __init__(self, pools: Path, groups: Mapping[bytes, str] | None = None, max_draft_len: int = 12) -> None:
        if not 1 <= max_draft_len <= MAX_DEPTH:
            raise ValueError(f"max_draft_len is {max_draft_len}; it must be 1 to {MAX_DEPTH}")
        super().__init__(max_draft_len=max_draft_len, max_total_draft_tokens=max_draft_len)
        self._arguments = pools, {} if groups is None else groups, max_draft_len
        self._groups = self._arguments[1]
        self._drafter = PoolDrafter(Pools.load(pools), max_nodes=MAX_NODES, min_share=0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def prepare_draft_tokens(self, scheduled_requests: ScheduledRequests, resource_manager: Any = None) -> None:
        """Set `py_draft_tokens` of the requests that generate: at most `max_draft_len`, none without room for them."""
        requests, texts = [], []
        for request in scheduled_requests.generation_requests:
            request.py_draft_tokens = []
            tokens, start = np.array(request.get_tokens(0), np.int32), request.py_orig_prompt_len
            # Besides what is drafted the model writes a token of its own.
            useful = min(self.max_draft_len, start + request.py_max_new_tokens - tokens.size - 1)
            if useful > 0:
                requests.append(request)
                group = self._groups.get(tokens[:start].tobytes(), GLOBAL)
                texts.append(RunningText(tokens, start, group, useful))
        if texts:
            for request, tree in zip(requests, self._drafter.draft(texts).split(), strict=True):
                request.py_draft_tokens = tree.best_branch().tolist()
