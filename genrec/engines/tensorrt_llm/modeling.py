"""Qwen3 and Llama with NEZHA's draft head, for TensorRT-LLM's PyTorch backend. Importing this registers them.

Of every context request the hidden states of its last history token and placeholders are taken from the packed batch,
with what the last layer reads of its history; `DraftHead` drafts from them, and codes and scores leave as additional
outputs beside the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from tensorrt_llm._torch.models.modeling_llama import LlamaForCausalLM
from tensorrt_llm._torch.models.modeling_qwen3 import Qwen3ForCausalLM
from tensorrt_llm._torch.models.modeling_utils import register_auto_model
from torch import Tensor

from genrec.bundle import Bundle
from genrec.bundle.checkpoint_shapes import DRAFT_HEAD, head_arguments
from genrec.catalog import PrefixTable, RuleMasks
from genrec.engines.tensorrt_llm.contract import ARCHITECTURES, BUNDLE_KEY, CODES, MAX_RULES, NO_DRAFTS, SCORES
from genrec.model.draft_head import DraftHead, History
from genrec.model.masks import Masks, Rules, as_tensor, copy_rows

if TYPE_CHECKING:
    from tensorrt_llm._torch.attention_backend import AttentionMetadata
    from tensorrt_llm._torch.model_config import ModelConfig

# The models of this process that can draft. TensorRT-LLM hands none out, and an engine has to reach its own.
SERVING: WeakSet[Any] = WeakSet()


class _DraftsFromContexts:
    """Adds the draft head to a stock decoder-only model; stands before it among the bases."""

    model: Any
    lm_head: Any
    logits_processor: Any
    config: Any
    draft_head: DraftHead

    def __init__(self, model_config: ModelConfig) -> None:
        """Raises ValueError for a deployment that the draft head cannot work in."""
        if model_config.mapping.has_pp():
            raise ValueError("pipeline_parallel_size is above 1; the draft head needs the whole model on each rank")
        if getattr(model_config, "spec_config", None) is not None:
            raise ValueError("speculative_config is set; NEZHA generates no tokens that could be speculated on")
        super().__init__(model_config)  # type: ignore[call-arg]
        config = model_config.pretrained_config
        # No argument for the data type: torch's default, float32, is what the head computes in.
        self.draft_head = DraftHead(hidden_size=config.hidden_size, **head_arguments(getattr(config, DRAFT_HEAD)))
        self._inputs: Tensor | None = None  # what the last layer reads, after its norm, [tokens, d]
        if self.draft_head.attention_heads:
            # Before the attention and not behind the norm, which may be fused with what stands before it.
            self.model.layers[-1].self_attn.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)

    def load_weights(self, weights: dict[str, Tensor], weight_mapper: Any = None, **options: Any) -> None:
        """Load the checkpoint, and the masks of the bundle that it belongs to.

        Raises ValueError unless the checkpoint has the draft head's tensors, all of them and no others: the stock
        loader leaves parameters that it finds no tensor for as they are, uninitialised. The parameter `weight_mapper`
        has to be there by name, because the loader looks for it.
        """
        prefix = f"{DRAFT_HEAD}."
        head = {name[len(prefix) :]: weights[name] for name in weights if name.startswith(prefix)}
        super().load_weights(weights, weight_mapper, **options)  # type: ignore[misc]
        try:
            self.draft_head.load_state_dict(head, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's {prefix}* tensors do not fit config.json: {error}") from error
        self._open_bundle(self.draft_head.initial_state.weight.device)

    def _open_bundle(self, device: torch.device) -> None:
        # Not as buffers: the loader would leave those uninitialised, and a catalogue is no weight.
        bundle = Bundle((Path(self.config._name_or_path) / getattr(self.config, BUNDLE_KEY)).resolve())
        if bundle.space.levels != self.draft_head.levels:
            raise ValueError(f"{bundle.path} has levels {bundle.space.levels}, the model {self.draft_head.levels}")
        self._beam_width = bundle.space.beams(bundle.manifest.beam_width)
        self._device, self._placeholder = device, bundle.layout.placeholders[-1]
        self._rules: Rules | None = None
        self.set_masks(bundle.masks)
        SERVING.add(self)

    def set_masks(self, table: PrefixTable) -> None:
        """Draft with the masks of `table` from the next step on."""
        self._table, self._masks = table, Masks.of(table, self._device)

    def update_masks(self, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Copy what has changed of the table, as of `PrefixTable.slots`, where the device has a copy."""
        if self._device.type != "cpu":
            self._masks.update(self._table, changed)

    def set_rules(self, rule_masks: RuleMasks) -> list[int]:
        """Draft with rules of `rule_masks` from now on. Returns the tokens that can stand for the rule of a request."""
        size = min(MAX_RULES, self.config.vocab_size)
        rows = torch.tensor(rule_masks.stacked([None] * size), device=self._device)
        self._rule_masks, self._rules = rule_masks, Rules(as_tensor(rule_masks.bits).to(self._device), rows)
        return [token for token in range(1, size) if token != self._placeholder]  # row 0 is that of no rule

    def set_rule(self, token: int, rows: np.ndarray) -> None:
        """Let `token` stand for a rule: its mask, int64 [2 L]. It is there for the steps that begin after this."""
        assert self._rules is not None
        self._rules.rows[token].copy_(torch.tensor(rows))

    def update_rules(self, rows: np.ndarray) -> None:
        """Copy rows of the rules' masks, int64 [n], where the device has a copy."""
        if self._device.type != "cpu" and self._rules is not None:
            copy_rows(self._rules.bits, self._rule_masks.bits, rows)

    def _keep_inputs(self, module: torch.nn.Module, args: tuple, options: dict[str, Any]) -> None:
        self._inputs = options["hidden_states"]

    def forward(
        self,
        attn_metadata: AttentionMetadata,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_context_logits: bool = False,
        spec_metadata: Any = None,
        resource_manager: Any = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """The stock model's logits, and a row of drafts for each of the batch's n sequences, contexts first.

        input_ids: int [tokens] of all sequences, packed. Returns `logits`, `draft_codes` int64 [n, K] and
        `draft_scores` float32 [n, K]; rows without drafts are NO_DRAFTS and NaN.
        """
        hidden = self.model(
            input_ids=input_ids,
            attn_metadata=attn_metadata,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            spec_metadata=spec_metadata,
            **options,
        )
        if attn_metadata.padded_num_tokens is not None:  # behind the batch's own tokens
            hidden = hidden[: attn_metadata.num_tokens]
        logits = self.logits_processor.forward(hidden, self.lm_head, attn_metadata, return_context_logits)
        codes, scores = self._drafts(hidden, input_ids, position_ids, attn_metadata)
        return {"logits": logits, CODES: codes, SCORES: scores}

    def _drafts(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attn_metadata: AttentionMetadata,
    ) -> tuple[Tensor, Tensor]:
        """Codes int64 [n, K] and scores float32 [n, K] of a packed batch's hidden states, [tokens, d].

        Nothing here waits for the device, raises because of a request, or has a shape that depends on data: an error
        would fail every request of the batch, and batches without contexts may be captured as CUDA graphs.
        """
        shape = attn_metadata.num_seqs, self._beam_width
        codes = torch.full(shape, NO_DRAFTS, dtype=torch.int64, device=hidden.device)
        scores = torch.full(shape, torch.nan, dtype=torch.float32, device=hidden.device)
        contexts = attn_metadata.num_contexts
        if contexts == 0:
            return codes, scores
        new = attn_metadata.seq_lens_cuda[:contexts].long()  # this step's tokens of each, not the prompts' lengths
        count = len(self.draft_head.levels) + 1
        ends, masks = new.cumsum(0), self._masks
        starts = ends - new
        if self._rules is not None and input_ids is not None:
            last = input_ids[ends - 1].long()
            ruled = (last != self._placeholder).long()
            ends, new = ends - ruled, new - ruled
            # Of a warm-up, the last token may be any.
            rows = self._rules.rows[last.clamp(max=self._rules.rows.shape[0] - 1) * ruled]
            masks = masks._replace(rules=self._rules._replace(rows=rows))
        at = ends[:, None] - count + torch.arange(count, device=hidden.device)
        complete = (new >= count)[:, None]
        # Where a context is too short, `at` points at its neighbour's tokens, or before the first.
        states, history = hidden[at.clamp(min=0)].float(), None
        if self.draft_head.attention_heads:
            assert position_ids is not None
            longest = int(attn_metadata.seq_lens[:contexts].max())
            history = self._history(starts, new, longest, attn_metadata.num_tokens)
            # All of the history has to be among this step's tokens: nothing of it may come from the cache.
            complete &= (position_ids.flatten()[starts] == 0)[:, None]
        drafted, scored, *_ = self.draft_head.beam(states, history, masks, self._beam_width)
        codes[:contexts] = torch.where(complete, drafted, NO_DRAFTS)
        scores[:contexts] = torch.where(complete, scored, torch.nan)
        return codes, scores

    def _history(self, starts: Tensor, new: Tensor, longest: int, tokens: int) -> History:
        """What the transitions read of contexts that begin at `starts` with `new` tokens, int64 [n] each.

        longest: tokens of the longest of them. tokens: of the whole batch, behind which padding may stand.
        """
        assert self._inputs is not None
        positions = torch.arange(longest, device=new.device)
        at = starts[:, None] + positions
        # Behind a context's end `at` points at its neighbours' tokens, which are not seen. One position is always seen:
        # attention to nothing would be NaN, of which rows without drafts must not remind anybody.
        seen = (positions < new[:, None] - len(self.draft_head.levels)) | (positions == 0)
        return History(self._inputs[at.clamp(max=tokens - 1)].float(), seen[:, None])


@register_auto_model(ARCHITECTURES["qwen3"])
class NezhaQwen3ForCausalLM(_DraftsFromContexts, Qwen3ForCausalLM):
    """TensorRT-LLM's Qwen3 with NEZHA's draft head."""


@register_auto_model(ARCHITECTURES["llama"])
class NezhaLlamaForCausalLM(_DraftsFromContexts, LlamaForCausalLM):
    """TensorRT-LLM's Llama with NEZHA's draft head."""
