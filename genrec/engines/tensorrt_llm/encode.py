"""The engine over TensorRT-LLM's encode-only path, from 1.3 on: one prefill past scheduler, KV cache and sampling.

Written as the source of autumn 2026 reads, and never run. `LLM.encode` itself hands out the logits alone, so the engine
asks the executor behind it, whose answer is the model's whole dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines.tensorrt_llm.contract import CODES, NO_DRAFTS, SCORES
from genrec.engines.tensorrt_llm.inside import InsideEngine

SINCE = (1, 3)


class EncodeEngine(InsideEngine):
    """As `TensorRtLlmEngine`, for arguments with `encode_only: true`. The caller forms the batches.

    Each is one pass; one above max_batch_size or max_num_tokens of the arguments takes several.
    """

    def _require_release(self, release: str) -> None:
        found = re.match(r"(\d+)\.(\d+)", release)
        if found is None or tuple(map(int, found.groups())) < SINCE:
            raise ValueError(
                f"encode_only is true, which TensorRT-LLM has from {SINCE[0]}.{SINCE[1]} on, and this is {release}; "
                "take it out of the arguments, or install a later release"
            )

    def _run(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        masks: PrefixTable | PrefixTrie,
        rule_rows: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        self._require_masked(masks)
        prompts = [row[:length] for row, length in zip(token_ids, lengths.tolist(), strict=True)]
        for prompt in prompts:
            self._check_prompt(prompt)
        if rule_rows is not None and rule_rows[:, 0].any():
            prompts = self._with_rules(prompts, rule_rows)
        drafted = [self._encode(prompts[part]) for part in self._parts([len(prompt) for prompt in prompts])]
        codes, scores = (np.concatenate(arrays) for arrays in zip(*drafted, strict=True))
        if (codes[:, 0] == NO_DRAFTS).any():
            raise RuntimeError("TensorRT-LLM did not compute a prompt in one pass; is chunked prefill on?")
        return codes, scores

    def _with_rules(self, prompts: list[np.ndarray], rule_rows: np.ndarray) -> list[np.ndarray]:
        """The prompts with the token of their rule behind them, of which the model has been told."""
        ruled = []
        for prompt, rows, token in zip(prompts, rule_rows, self._rule_tokens, strict=False):
            if rows[0]:
                for model in self._reached():
                    model.set_rule(token, rows)
                prompt = np.append(prompt, np.int32(token))
            ruled.append(prompt)
        if len(ruled) < len(prompts):
            raise RuntimeError(f"{len(prompts)} requests with rules are too many; send at most {len(ruled)} at once")
        return ruled

    def _parts(self, lengths: list[int]) -> Iterator[slice]:
        """Consecutive prompts that one pass takes."""
        most, tokens = (self._arguments.get(name) or np.inf for name in ("max_batch_size", "max_num_tokens"))
        first, taken = 0, 0
        for at, length in enumerate(lengths):
            if at - first >= most or taken + length > tokens:
                yield slice(first, at)
                first, taken = at, 0
            taken += length
        yield slice(first, len(lengths))

    def _encode(self, prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """One pass: codes int64 [n, K] and scores float32 [n, K]."""
        packed = {"input_ids": np.concatenate(prompts).tolist(), "seq_lens": [len(prompt) for prompt in prompts]}
        outputs = self._llm._encoder_executor.batch_forward(packed, gather_context_logits=False)
        return outputs[CODES].cpu().numpy(), outputs[SCORES].cpu().numpy()
