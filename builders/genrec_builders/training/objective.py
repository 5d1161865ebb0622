"""What training minimises: the losses of the two decoders over packed rows and over single prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel, last_positions
from genrec.model.draft_head import History
from genrec.model.nezha import NezhaModel
from genrec.model.packing import pack_rows, structure_of
from genrec.prompt import PromptLayout

TAUGHT = 0.9  # share of a frozen backbone's own predictions in the loss of its head (docs/checkpoints.md)
IGNORED = -100  # a target that does not count, to cross_entropy


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows. sids: int32 [R, N, L], padded at the end with any valid codes. counted: bool [R, N - 1], whether
    item g + 1 of the row is a target."""

    sids: np.ndarray
    counted: np.ndarray

    @property
    def tokens(self) -> int:
        """Codes of histories and placeholders, padding included."""
        rows, items, depth = self.sids.shape
        return 2 * rows * (items - 1) * depth


@dataclass(frozen=True)
class PromptBatch:
    """Single prompts, as they are served. prompts: int32 [P_b] each. targets: int32 [B, L], the next items' codes."""

    prompts: list[np.ndarray]
    targets: np.ndarray

    @property
    def tokens(self) -> int:
        """Of all prompts, without padding."""
        return sum(map(len, self.prompts))


Batch = PackedBatch | PromptBatch


class Objective(nn.Module):
    """A loss to minimise over `model`'s parameters; layout: of its prompts. Called with a `Batch`, gives a scalar.

    parts: of the last call, losses by level, [L] each, by name; for whoever follows a training.
    """

    model: BackboneModel
    layout: PromptLayout

    def __init__(self, model: BackboneModel, layout: PromptLayout) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.parts: dict[str, Tensor] = {}

    def mean_of_levels(self, name: str, losses: list[Tensor]) -> Tensor:
        """The mean of scalars, one per level, noted in `parts`."""
        stacked = torch.stack(losses)
        self.parts[name] = stacked.detach()
        return stacked.mean()


class NezhaObjective(Objective):
    """Mean cross-entropy of the draft head's levels, teacher-forced (NEZHA, arXiv 2511.18793).

    auxiliary_weight: weight of the next-token loss on the history's own SID tokens, whose logits are products with
    the input embeddings. Without a prompt prefix nothing stands before a row's first code, which the loss leaves out.
    heads: the rows of each level's codes in an output head that a checkpoint has beside the embeddings, [T_l, d] each:
    the logits are products with these, which stay as they are.
    """

    model: NezhaModel

    def __init__(
        self,
        model: NezhaModel,
        layout: PromptLayout,
        auxiliary_weight: float = 0.0,
        heads: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(model, layout)
        self.auxiliary_weight = auxiliary_weight
        self.frozen = False  # see `freeze_backbone`
        self.own_heads = heads is not None
        for level in range(layout.space.depth):
            tokens = torch.from_numpy(layout.level_tokens(level).astype(np.int64))
            self.register_buffer(f"level_tokens_{level}", tokens, persistent=False)
            if heads is not None:
                self.register_buffer(f"head_{level}", heads[level], persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        device = self.model.input_embeddings().device
        if isinstance(batch, PromptBatch):
            depth = self.layout.space.depth
            token_ids, lengths = (each.to(device) for each in padded(batch.prompts))
            hidden, inputs = self.model.causal_states(token_ids)
            states = last_positions(hidden, lengths, depth + 1)
            history = self.model.history(self._last_norm(inputs), lengths, depth)
            targets = torch.from_numpy(batch.targets.astype(np.int64)).to(device)
            return self.head_loss(states[:, None], history, targets[:, None])
        hidden, states, history = self.packed_states(batch, device)
        sids = torch.from_numpy(batch.sids.astype(np.int64)).to(device)
        counted = torch.from_numpy(batch.counted).to(device)
        targets = sids[:, 1:].masked_fill(~counted[..., None], IGNORED)
        if self.frozen and (seen := counted[:, :-1]).any():
            logits = self.model.draft_head.logits(states, targets.clamp(min=0), history)
            taught = self._taught_loss(hidden, logits, seen)
            return TAUGHT * taught + (1 - TAUGHT) * self._levels_loss(logits, targets)
        loss = self.head_loss(states, history, targets)
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self._history_loss(hidden, sids, batch.counted)
        return loss

    def packed_states(self, batch: PackedBatch, device: torch.device) -> tuple[Tensor, Tensor, History | None]:
        """Hidden states of packed rows [R, S, d], of them h_0 .. h_L of each group [R, N - 1, L + 1, d], and what the
        transitions read."""
        layout, items = self.layout, batch.sids.shape[1]
        structure = structure_of(layout, items)
        tokens, positions = pack_rows(layout, batch.sids).to(device), structure.positions[None].to(device)
        allowed = structure.allowed.to(device)
        if self.frozen:  # nothing that is trained stands in the history: its states need no gradients
            end, cache = structure.history_end, DynamicCache()
            with torch.no_grad():
                hidden, inputs = self.model.hidden_states(
                    tokens[:, :end], positions[:, :end], allowed[:end, :end], cache
                )
            answers, _ = self.model.hidden_states(tokens[:, end:], positions[:, end:], allowed[end:], cache)
            hidden = torch.cat([hidden, answers], 1)
        else:
            hidden, inputs = self.model.hidden_states(tokens, positions, allowed)
        # Slices, whose gradients are faster than a gather's and added up in a fixed order.
        first = len(layout.opening) + layout.item_tokens - 1
        last_history = hidden[:, first : structure.history_end : layout.item_tokens]
        placeholders = hidden[:, structure.history_end :].unflatten(1, (items - 1, -1))
        states = torch.cat([last_history[:, :, None], placeholders], 2)
        return hidden, states, self.packed_history(inputs[:, : structure.history_end], items)

    def packed_history(self, inputs: Tensor, items: int) -> History | None:
        """Of rows of `items` items, from the states before the last layer of all but placeholders, [R, S, d]."""
        if not self.model.draft_head.attention_heads:
            return None
        structure = structure_of(self.layout, items)
        # A group's history is what its placeholders may attend to, but for themselves.
        seen = structure.allowed[structure.history_end :: self.layout.space.depth, : structure.history_end]
        return History(self._last_norm(inputs), seen[None].to(inputs.device))

    def _last_norm(self, inputs: Tensor) -> Tensor:
        return self.model.model.layers[-1].input_layernorm(inputs)

    def head_loss(self, states: Tensor, history: History | None, targets: Tensor) -> Tensor:
        """states [B, Q, L + 1, d], targets int64 [B, Q, L], IGNORED where a target does not count."""
        return self._levels_loss(self.model.draft_head.logits(states, targets.clamp(min=0), history), targets)

    def _levels_loss(self, logits: list[Tensor], targets: Tensor) -> Tensor:
        return self.mean_of_levels("loss", [level_loss(each, targets[..., level]) for level, each in enumerate(logits)])

    def _taught_loss(self, hidden: Tensor, logits: list[Tensor], seen: Tensor) -> Tensor:
        """Mean cross-entropy of the head's codes against what the frozen backbone itself says of them.

        It says so in every row, of all items but the last: what stands before a code there is what beam search would
        read. hidden: of packed rows. logits: of items 1 to N - 1. seen: bool [R, N - 2], which of them but the last
        count.
        """
        before = self._before_codes(hidden.detach(), seen.shape[1] + 1)[:, 1:][seen]  # [n, tokens of an item, d]
        losses = []
        for level, each in enumerate(logits):
            with torch.no_grad():
                taught = (before[:, level] @ self._table(level).T).float().softmax(-1)
            losses.append(F.cross_entropy(each[:, :-1][seen].float(), taught))
        return self.mean_of_levels("loss of what is taught", losses)

    def _before_codes(self, hidden: Tensor, items: int) -> Tensor:
        """Of packed rows, the states before each token of the first `items` items: [R, S, d] -> [R, items, tokens, d].

        Where nothing stands before the first code, its state is 0.
        """
        start, item = len(self.layout.opening) - 1, self.layout.item_tokens
        before = hidden[:, max(0, start) : start + items * item]
        if start < 0:
            before = F.pad(before, (0, 0, 1, 0))
        return before.unflatten(1, (items, item))

    def _table(self, level: int) -> Tensor:
        """What hidden states are multiplied with for the logits of a level's codes, [T_l, d]."""
        if self.own_heads:
            return self.get_buffer(f"head_{level}")
        return F.embedding(self.get_buffer(f"level_tokens_{level}"), self.model.input_embeddings())

    def _history_loss(self, hidden: Tensor, sids: Tensor, counted: np.ndarray) -> Tensor:
        depth, groups = self.layout.space.depth, sids.shape[1] - 1
        # Each token before an item's code predicts that code: [R, N - 1, L, d]. Items before the last target count.
        before = self._before_codes(hidden, groups)
        seen = np.flip(np.maximum.accumulate(np.flip(counted, 1), 1), 1)
        predicted = np.repeat(seen[..., None], depth, -1)
        if not self.layout.opening:
            predicted[:, 0, 0] = False
        targets = sids[:, :-1].masked_fill(~torch.from_numpy(predicted).to(sids.device), IGNORED)
        losses = []
        for level in range(depth):
            if not predicted[..., level].any():  # rows of one item before their target; a mean of nothing is no number
                losses.append(hidden.new_zeros(()))
                continue
            losses.append(level_loss(before[:, :, level] @ self._table(level).T, targets[..., level]))
        return self.mean_of_levels("auxiliary loss", losses)


class AutoregressiveObjective(Objective):
    """Mean cross-entropy of the next code at each level, over the targets' codes: plain next-token prediction."""

    model: AutoregressiveModel

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        device = self.model.input_embeddings().device
        if isinstance(batch, PromptBatch):
            tails = self.layout.tokens_of(batch.targets)[:, :-1]
            prompts = [np.concatenate([prompt, tail]) for prompt, tail in zip(batch.prompts, tails, strict=True)]
            token_ids, lengths = padded(prompts)
            hidden, _ = self.model.causal_states(token_ids.to(device))
            logits = self._logits(last_positions(hidden, lengths.to(device), self.layout.space.depth))
            targets = torch.from_numpy(batch.targets.astype(np.int64)).to(device)
        else:
            logits = self.packed_logits(batch)
            sids = torch.from_numpy(batch.sids.astype(np.int64)).to(device)
            targets = sids[:, 1:].masked_fill(~torch.from_numpy(batch.counted).to(device)[..., None], IGNORED)
        losses = [level_loss(each, targets[..., level]) for level, each in enumerate(logits)]
        return self.mean_of_levels("loss", losses)

    def packed_logits(self, batch: PackedBatch) -> list[Tensor]:
        """Teacher-forced logits of items 1 .. N - 1 of each row, per level [R, N - 1, T_l]."""
        rows, items, depth = batch.sids.shape
        tokens = self.layout.history_tokens(batch.sids)[:, :-1]
        opening = np.tile(np.asarray(self.layout.opening, np.int32), (rows, 1))
        token_ids = torch.from_numpy(np.concatenate([opening, tokens], 1).astype(np.int64))
        hidden, _ = self.model.causal_states(token_ids.to(self.model.input_embeddings().device))
        item = self.layout.item_tokens
        first = len(self.layout.opening) + item - 1  # the last token of a row's first item
        return self._logits(hidden[:, first:].unflatten(1, (items - 1, item))[:, :, :depth])

    def _logits(self, states: Tensor) -> list[Tensor]:
        return [self.model.level_logits(states[..., level, :], level) for level in range(states.shape[-2])]


def freeze_backbone(objective: NezhaObjective) -> Callable[[], None]:
    """Let only the draft head and the placeholders' embeddings be trained; the backbone's weights stay as they are.

    The embeddings are trained as a parameter of their own, so that none of the others has a gradient. Returns the
    function that writes them into the backbone.
    """
    model, layout = objective.model, objective.layout
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    tokens = torch.tensor(layout.placeholders)
    trained = nn.Parameter(model.input_embeddings()[tokens].detach().clone())
    model.register_parameter("placeholder_embeddings", trained)

    def put_in(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        here = inputs[0][..., None] == tokens.to(output.device)
        return torch.where(here.any(-1, keepdim=True), here.to(output.dtype) @ trained.to(output.dtype), output)

    hook = model.model.get_input_embeddings().register_forward_hook(put_in)
    objective.frozen = True

    def write() -> None:
        hook.remove()
        with torch.no_grad():
            model.input_embeddings()[tokens] = trained.to(model.input_embeddings())
        del model.placeholder_embeddings
        objective.frozen = False

    return write


def level_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets that count: logits [..., T_l], int64 [...]."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def padded(prompts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Right-padded token ids int64 [B, S] and lengths int64 [B] of prompts int32 [P_b]."""
    tensors = [torch.from_numpy(prompt.astype(np.int64)) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def dropped(values: Tensor, probability: float) -> Tensor:
    """Dropout of each of `values` (any shape) with `probability` in [0, 1), to the nearest 1 / 256.

    One random byte per value: on a CPU, PyTorch's own draws a whole number for each and takes three times as long, an
    eighth of a training step.
    """
    cut = round(256 * probability)
    if not cut:
        return values
    words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= cut
    return values * (kept.to(values.dtype) * (256 / (256 - cut)))


def add_dropout(model: nn.Module, probability: float, head_probability: float = 0.0) -> Callable[[], None]:
    """Dropout in training: of a causal language model, and of its draft head if it has one.

    probability: on the embeddings and on what each attention and feed-forward block adds to the residual, where
    transformers' Qwen3 and Llama have none. head_probability: on the hidden states that a `DraftHead` reads, on its
    states before R_l, and on what each transition adds. Returns the function that takes it out again.
    """
    backbone = cast(PreTrainedModel, model.model)
    outputs = [backbone.get_input_embeddings()]
    outputs += [block for layer in backbone.layers for block in (layer.self_attn, layer.mlp)]
    hooks = [place.register_forward_hook(_dropped_output(probability)) for place in outputs]
    if head_probability and isinstance(model, NezhaModel):
        head = model.draft_head
        added = [*head.transition_outputs, *(head.transition_mixes if head.attention_heads else ())]
        hooks += [place.register_forward_hook(_dropped_output(head_probability)) for place in added]
        for place in (head.initial_state, *head.projections, *head.state_projections):
            hooks.append(place.register_forward_pre_hook(_dropped_input(head_probability)))

    def take_out() -> None:
        for hook in hooks:
            hook.remove()

    return take_out


def _dropped_output(probability: float) -> Callable[..., Tensor | tuple]:
    def drop(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (dropped(output[0], probability), *output[1:])
        return dropped(output, probability)

    return drop


def _dropped_input(probability: float) -> Callable[..., tuple]:
    def drop(module: nn.Module, inputs: tuple) -> tuple:
        return (dropped(inputs[0], probability), *inputs[1:]) if module.training else inputs

    return drop
