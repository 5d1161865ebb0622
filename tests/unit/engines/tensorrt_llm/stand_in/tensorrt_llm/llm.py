"""TEST DOUBLE: the LLM API and, behind it, an executor that packs what waits into one step of prefills."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from ._torch.models.modeling_utils import MODEL_CLASS_MAPPING, AttentionMetadata, MetaInitMode, ModelConfig

_ARGUMENTS = {
    "max_batch_size": 2048,
    "max_num_tokens": 8192,
    "max_seq_len": None,
    "max_beam_width": 1,
    "skip_tokenizer_init": False,
    "enable_chunked_prefill": False,
    "disable_overlap_scheduler": False,
    "cuda_graph_config": {},
    "kv_cache_config": {},
    "encode_only": False,
}
_KV_CACHE = {
    "free_gpu_memory_fraction": 0.9,
    "enable_block_reuse": True,
    "enable_partial_reuse": True,
    "tokens_per_block": 32,
}


class RequestError(RuntimeError):
    pass


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    max_tokens: int = 32
    detokenize: bool = True
    additional_model_outputs: list[str] | None = None


@dataclass
class CompletionOutput:
    additional_generation_outputs: dict[str, torch.Tensor] | None = None


@dataclass(eq=False)
class RequestOutput:
    prompt: list[int]
    sampling: SamplingParams
    salt: str | None
    llm: LLM
    outputs: list[CompletionOutput] = field(default_factory=list)
    aborted: bool = False
    cached: int = 0

    def __post_init__(self):
        try:
            self.done = asyncio.get_running_loop().create_future()
        except RuntimeError:
            self.done = None

    async def aresult(self):
        assert self.done is not None, "no event loop was running when the request was made"
        await self.done
        return self

    def abort(self):
        self.aborted = True
        if "TEST_DOUBLE_VERBOSE" in os.environ:
            print("test double: aborted", file=sys.stderr, flush=True)

    def settle(self, error=None):
        def deliver():
            if not self.done.done():
                self.done.set_exception(error) if error else self.done.set_result(None)

        self.done.get_loop().call_soon_threadsafe(deliver)


class LLM:
    """steps: what each step ran, for tests: (contexts, generations, tokens, padding).

    Switches for tests, on the class: pad (tokens behind a step's own), one_token_as_decode, fault (raised by the step
    that meets this token), delay (seconds of a step, or TEST_DOUBLE_DELAY).
    """

    pad = 0
    one_token_as_decode = False
    fault: int | None = None
    delay = float(os.environ.get("TEST_DOUBLE_DELAY", "0"))

    def __init__(self, model, **arguments):
        if unknown := arguments.keys() - _ARGUMENTS.keys():
            raise ValueError(f"unknown arguments {sorted(unknown)}")
        self.args = _ARGUMENTS | arguments
        if unknown := self.args["kv_cache_config"].keys() - _KV_CACHE.keys():
            raise ValueError(f"unknown KV cache arguments {sorted(unknown)}")
        if not self.args["skip_tokenizer_init"]:
            raise ValueError(f"no tokenizer in {model}")
        self.kv = _KV_CACHE | self.args["kv_cache_config"]
        self.model = load_model(Path(model))
        self.steps = []
        self.requests = []
        self._cache: set = set()
        self._waiting: queue.Queue = queue.Queue()
        self._wake = threading.Event()
        self._open = True
        self._warm_up()
        self._encoder_executor = EncoderExecutor(self) if self.args["encode_only"] else None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def generate_async(self, inputs, sampling_params=None, streaming=False, cache_salt=None):
        if self._encoder_executor is not None:
            raise RuntimeError("encode_only")
        if len(inputs) > self.args["max_num_tokens"]:
            raise RequestError("The prompt is above max_num_tokens")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id")
        request = RequestOutput(list(inputs), sampling_params, cache_salt, self)
        self.requests.append(request)
        self._waiting.put(request)
        return request

    def shutdown(self):
        self._open = False
        self._waiting.put(None)
        self._thread.join()

    def _warm_up(self):
        """Steps that no request asked for: a context of dummy tokens, a batch of one-token ones, decodes to capture."""
        with torch.inference_mode():
            for lengths, contexts in (([7, 1], 2), ([1, 1, 1], 3), ([1, 1], 0)):
                tokens = torch.zeros(sum(lengths), dtype=torch.int32)
                metadata = AttentionMetadata(torch.tensor(lengths, dtype=torch.int32), contexts, [[]] * len(lengths))
                positions = torch.tensor([[at for length in lengths for at in range(length)]], dtype=torch.int32)
                outputs = self.model.forward(
                    attn_metadata=metadata, input_ids=tokens, position_ids=positions, resource_manager=None
                )
                assert all(len(rows) == len(lengths) for rows in outputs.values())

    def _run(self):
        while self._open:
            batch, tokens = [], 0
            request = self._waiting.get()
            while request is not None:
                if not request.aborted:
                    batch.append(request)
                    tokens += len(request.prompt)
                if len(batch) >= self.args["max_batch_size"] or self._waiting.empty():
                    break
                following = self._waiting.queue[0]  # None if this is shut down
                if following is not None and tokens + len(following.prompt) > self.args["max_num_tokens"]:
                    break
                request = self._waiting.get()
            if batch:
                threading.Event().wait(self.delay)
                try:
                    self._step(batch)
                except Exception as error:  # as in the executor: a step's error is every request's of its batch
                    for one in batch:
                        one.settle(RequestError(str(error)))

    @torch.inference_mode()
    def _step(self, batch):
        # A context of one token may be run as a decode: generations stand behind the contexts.
        for request in batch:
            request.cached = self._match(request)
        batch.sort(key=lambda request: self.one_token_as_decode and len(request.prompt) - request.cached == 1)
        new = [request.prompt[request.cached :] for request in batch]
        if any(self.fault in one for one in new):
            raise RuntimeError("device-side assert")
        contexts = sum(not (self.one_token_as_decode and len(one) == 1) for one in new)
        lengths = torch.tensor([len(one) for one in new], dtype=torch.int32)
        metadata = AttentionMetadata(lengths, contexts, [request.prompt[: request.cached] for request in batch])
        tokens = torch.tensor([token for one in new for token in one], dtype=torch.int32)
        at = [position for request in batch for position in range(request.cached, len(request.prompt))]
        positions = torch.tensor([at], dtype=torch.int32)
        if self.pad:
            tokens, positions = (torch.nn.functional.pad(each, (0, self.pad)) for each in (tokens, positions))
            metadata.padded_num_tokens = len(tokens)
        outputs = self.model.forward(
            attn_metadata=metadata,
            input_ids=tokens,
            position_ids=positions,
            return_context_logits=False,
            spec_metadata=None,
            resource_manager=None,
            lora_params=None,
        )
        assert outputs["logits"].shape[0] == len(batch)
        self.steps.append((contexts, len(batch) - contexts, int(lengths.sum()), self.pad))
        names = set().union(*(request.sampling.additional_model_outputs for request in batch))  # None raises, as there
        for row, request in enumerate(batch):
            # One row for each sequence, a beam dimension between.
            found = {name: torch.tile(outputs[name][row : row + 1], (1, 1, 1)) for name in names}
            request.outputs = [CompletionOutput(found)]
            self._keep(request)
            request.settle()

    def _match(self, request):
        """Tokens of the prompt that are cached: of whole blocks, or any with partial reuse; never the last one."""
        if not self.kv["enable_block_reuse"]:
            return 0
        step = 1 if self.kv["enable_partial_reuse"] else self.kv["tokens_per_block"]
        found = 0
        for end in range(step, len(request.prompt), step):
            if (request.salt, tuple(request.prompt[:end])) in self._cache:
                found = end
        return found

    def _keep(self, request):
        self._cache.update((request.salt, tuple(request.prompt[:end])) for end in range(1, len(request.prompt)))


class EncoderExecutor:
    """Of encode_only: a packed batch in, the model's whole dictionary out, on the calling thread."""

    def __init__(self, llm):
        self._llm = llm

    @torch.inference_mode()
    def batch_forward(self, inputs, gather_context_logits=False):
        lengths, tokens = inputs["seq_lens"], torch.tensor(inputs["input_ids"], dtype=torch.int32)
        assert len(lengths) <= self._llm.args["max_batch_size"] and len(tokens) <= self._llm.args["max_num_tokens"]
        assert sum(lengths) == len(tokens)
        metadata = AttentionMetadata(torch.tensor(lengths, dtype=torch.int32), len(lengths), [[]] * len(lengths))
        positions = torch.tensor([[at for length in lengths for at in range(length)]], dtype=torch.int32)
        self._llm.steps.append((len(lengths), 0, len(tokens), 0))
        return self._llm.model.forward(
            attn_metadata=metadata,
            input_ids=tokens,
            position_ids=positions,
            return_context_logits=gather_context_logits,
        )


def load_model(folder):
    config = AutoConfig.from_pretrained(folder)
    cls = MODEL_CLASS_MAPPING[config.architectures[0]]
    with MetaInitMode():
        model = cls(ModelConfig(config))
    # Uninitialised memory, made visible.
    model._apply(lambda t: torch.full_like(t, torch.nan, device="cpu") if t.device.type == "meta" else t)
    weights = load_file(folder / "model.safetensors")
    mapper = {"weight_mapper": object()} if "weight_mapper" in inspect.getfullargspec(model.load_weights).args else {}
    model.load_weights(weights, **mapper)
    return model.eval()
