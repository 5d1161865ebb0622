"""The TensorRT-LLM engine: its LLM API runs the out-of-tree model, and batches the requests that are in flight."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from genrec.catalog import PrefixTable, PrefixTrie
from genrec.engines.base import RULE_BYTES, Drafts, InFlightEngine
from genrec.engines.tensorrt_llm.contract import CODES, LLM_ARGUMENTS, NO_DRAFTS, RELEASE, RULE_TOKENS, SCORES
from genrec.errors import Cancelled, DeadlineExceeded

# A backbone in half precision: log-probabilities that are sums over the levels differ by so much from float32's.
SCORE_TOLERANCES = {"bfloat16": 0.25, "float16": 0.05, "float32": 1e-3}
_CANCELLATION_CHECK_S = 0.02


class TensorRtLlmEngine(InFlightEngine):
    """Runs the folder that `genrec export-tensorrt-llm` adds to a bundle.

    folder: with config.json, the weights and the arguments of `tensorrt_llm.LLM`. masks, beam_width: the bundle's.
    max_prompt: tokens of the longest prompt. arguments: of `tensorrt_llm.LLM`, instead of the folder's. Drafts are
    always masked: the masks are inside the model, which opens the bundle itself. rule_bytes: as `Engine`'s; rules are
    taken if the arguments leave room for one more token, which tells the model which rule a request has.

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
        config, arguments = _read_folder(folder, arguments, max_prompt)
        super().__init__(masks, beam_width, rule_bytes if _leaves_room(arguments, max_prompt + RULE_TOKENS) else None)
        self._vocabulary = int(config["vocab_size"])
        self.score_tolerance = SCORE_TOLERANCES[config["dtype"]]
        os.environ.setdefault("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
        try:
            from tensorrt_llm import LLM, SamplingParams

            from genrec.engines.tensorrt_llm.modeling import SERVING  # registers the model, too
        except ImportError as error:
            raise ImportError(f"{error}; TensorRT-LLM {RELEASE} has to be installed where this engine runs") from error

        # The one generated token is ignored. Every request asks for the outputs: one that did not would fail its batch.
        self._sampling: Callable[[], Any] = lambda: SamplingParams(
            max_tokens=1, end_id=-1, detokenize=False, additional_model_outputs=[CODES, SCORES]
        )
        before = set(SERVING)
        self._llm = LLM(model=str(folder), **arguments)
        self._models = set(SERVING) - before
        self._rule_tokens: deque[int] = deque()
        if self._rule_masks is not None:
            for model in self._models:
                self._rule_tokens = deque(model.set_rules(self._rule_masks))
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

    def _run(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        masks: PrefixTable | PrefixTrie,
        rule_rows: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if masks is self._masks[False]:
            raise ValueError("masked is false, but TensorRT-LLM drafts with masks only; use the onnx or torch engine")
        rules = [None] * len(lengths) if rule_rows is None else rule_rows.reshape(len(lengths), -1, 2)
        waiting = [
            self.submit(row[:length], rule=rule)
            for row, length, rule in zip(token_ids, lengths.tolist(), rules, strict=True)
        ]
        drafts = [one.result() for one in waiting]
        return np.concatenate([one.codes for one in drafts]), np.concatenate([one.scores for one in drafts])

    def _check_prompt(self, prompt: np.ndarray) -> None:
        # Inside the model, a token without an embedding is a fault of the device, which ends every request.
        if prompt.size > self._max_prompt:
            raise ValueError(f"the prompt has {prompt.size} tokens; the model takes at most {self._max_prompt}")
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            raise ValueError(
                f"the prompt has tokens {prompt.min()} to {prompt.max()}; the model knows 0 to {self._vocabulary - 1}"
            )

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


def _read_folder(folder: Path, given: dict[str, Any], max_prompt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and the LLM's arguments with the `given` ones in place of the folder's. Raises ValueError."""
    try:
        import yaml

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arguments = yaml.safe_load((folder / LLM_ARGUMENTS).read_text(encoding="utf-8")) | given
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: is missing; make a bundle that TensorRT-LLM serves with `genrec export-tensorrt-llm`"
        ) from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: cannot be read: {error}") from error
    if arguments.get("enable_chunked_prefill"):
        raise ValueError(
            f"{folder / LLM_ARGUMENTS}: enable_chunked_prefill is true; a chunk could cut apart what the draft head "
            "reads, set it to false"
        )
    for name, least in _least(max_prompt).items():
        if (value := arguments.get(name)) is not None and value < least:
            raise ValueError(f"{folder / LLM_ARGUMENTS}: {name} is {value}, below the {least} of the longest prompt")
    return config, arguments


def _least(tokens: int) -> dict[str, int]:
    """The arguments that limit the length of a prompt, and what one of `tokens` needs of each."""
    return {"max_num_tokens": tokens, "max_seq_len": tokens + 1}


def _leaves_room(arguments: dict[str, Any], tokens: int) -> bool:
    """Whether the LLM's arguments leave room for a prompt of `tokens`."""
    return all((value := arguments.get(name)) is None or value >= least for name, least in _least(tokens).items())
