"""The TensorRT-LLM engine: its LLM API runs the out-of-tree model, and batches the requests that are in flight."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines.base import RULE_BYTES, Drafts, InFlightEngine
from genrec.engines.tensorrt_llm.contract import CODES, NO_DRAFTS, SCORES
from genrec.engines.tensorrt_llm.encode import EncodeEngine
from genrec.engines.tensorrt_llm.folder import read_folder
from genrec.engines.tensorrt_llm.inside import InsideEngine
from genrec.errors import Cancelled, DeadlineExceeded

_CANCELLATION_CHECK_S = 0.02


def open_folder(folder: Path, masks: PrefixTable, beam_width: int, max_prompt: int, **options: Any) -> InsideEngine:
    """The engine for a folder's arguments: `EncodeEngine` if they say `encode_only`, else `TensorRtLlmEngine`."""
    rule_bytes = options.pop("rule_bytes", RULE_BYTES)
    encodes = read_folder(folder, options, max_prompt)[1].get("encode_only")
    made = EncodeEngine if encodes else TensorRtLlmEngine
    return made(folder, masks, beam_width, max_prompt, rule_bytes, **options)


class TensorRtLlmEngine(InsideEngine, InFlightEngine):
    """Each request is a generation of one token, which is ignored; the LLM forms the batches. See `InsideEngine`."""

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
        super().__init__(folder, masks, beam_width, max_prompt, rule_bytes, **arguments)
        from tensorrt_llm import SamplingParams

        # The one generated token is ignored. Every request asks for the outputs: one that did not would fail its batch.
        self._sampling: Callable[[], Any] = lambda: SamplingParams(
            max_tokens=1, end_id=-1, detokenize=False, additional_model_outputs=[CODES, SCORES]
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tensorrt-llm", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: np.ndarray,
        deadline_ns: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        rule: np.ndarray | None = None,
    ) -> Future[Drafts]:
        """See `InFlightEngine`. Requests that are late or cancelled are aborted.

        Raises RuntimeError for a rule if as many requests with one are in flight as the model can tell apart, or if the
        model runs in another process.
        """
        rows = None if rule is None else self.rule_masks.stacked([rule])[0]
        if not prompt.size:
            nothing: Future[Drafts] = Future()
            nothing.set_result(Drafts.none(1, self.beam_width))
            return nothing
        self._check_prompt(prompt)
        if rows is None or rows[0] == 0:  # that of no rule
            return self._start(prompt.tolist(), deadline_ns, cancelled)
        models = self._reached()
        try:
            token = self._rule_tokens.popleft()
        except IndexError:
            raise RuntimeError("too many requests with rules are in flight; send fewer at once") from None
        for model in models:
            model.set_rule(token, rows)
        answer = self._start([*prompt.tolist(), token], deadline_ns, cancelled)
        answer.add_done_callback(lambda _: self._rule_tokens.append(token))
        return answer

    def _start(self, prompt: list[int], deadline_ns: int | None, cancelled: Callable[[], bool]) -> Future[Drafts]:
        return asyncio.run_coroutine_threadsafe(self._draft_one(prompt, deadline_ns, cancelled), self._loop)

    def close(self) -> None:
        """End the model; what is in flight is cancelled."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        super().close()

    def _run(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        masks: PrefixTable | PrefixTrie,
        rule_rows: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        self._require_masked(masks)
        rules = [None] * len(lengths) if rule_rows is None else rule_rows.reshape(len(lengths), -1, 2)
        waiting = [
            self.submit(row[:length], rule=rule)
            for row, length, rule in zip(token_ids, lengths.tolist(), rules, strict=True)
        ]
        drafts = [one.result() for one in waiting]
        return np.concatenate([one.codes for one in drafts]), np.concatenate([one.scores for one in drafts])

    async def _draft_one(self, prompt: list[int], deadline_ns: int | None, cancelled: Callable[[], bool]) -> Drafts:
        codes, scores = await self._ask(prompt, deadline_ns, cancelled)
        if codes[0] == NO_DRAFTS:
            # A cached prefix hid some of what the draft head reads. Under a salt of its own nothing is cached.
            codes, scores = await self._ask(prompt, deadline_ns, cancelled, cache_salt=uuid.uuid4().hex)
        if codes[0] == NO_DRAFTS:
            raise RuntimeError(
                f"TensorRT-LLM did not compute a prompt of {len(prompt)} tokens in one step, not even with "
                "an empty cache; is chunked prefill on?"
            )
        return Drafts.ordered(codes[None], scores[None])

    async def _ask(
        self, prompt: list[int], deadline_ns: int | None, cancelled: Callable[[], bool], **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """One pass of the model: codes int64 [K], scores float32 [K]."""
        # Inside the loop: TensorRT-LLM gives a request an awaitable queue only where it finds a running one.
        output = self._llm.generate_async(prompt, self._sampling(), streaming=False, **options)
        answer = asyncio.ensure_future(output.aresult())
        try:
            while not answer.done():
                left = np.inf if deadline_ns is None else (deadline_ns - time.monotonic_ns()) / 1e9
                if left <= 0:
                    raise DeadlineExceeded("request timeout expired while the model ran; allow more time")
                await asyncio.wait([answer], timeout=min(left, _CANCELLATION_CHECK_S))
                if not answer.done() and cancelled():
                    raise Cancelled("the request was cancelled while the model ran")
        except (DeadlineExceeded, Cancelled, asyncio.CancelledError):
            answer.cancel()
            output.abort()
            raise
        answer.result()
        found = output.outputs[0].additional_generation_outputs
        return _first_row(found[CODES]).astype(np.int64), _first_row(found[SCORES]).astype(np.float32)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _first_row(output: Any) -> np.ndarray:
    """The first step's row of an additional output: [steps, 1, K], as a tensor or a list of each step's."""
    return np.asarray(output[0]).reshape(-1, np.asarray(output[0]).shape[-1])[0]
