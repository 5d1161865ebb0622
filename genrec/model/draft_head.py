"""The draft head: one tiny autoregressive step per level on the hidden states of a single prefill.

The single source of its mathematics: training calls `logits`, every engine runs or traces `beam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from genrec.model.beam import Beams, Drafted
from genrec.model.layers import Heads, LayerCache, additive, unit_rms
from genrec.model.masks import Masks

_EPSILON = 1e-6  # of the mean square of a state


class History(NamedTuple):
    """What the transitions read of B sequences that end in Q groups of placeholders each; Q = 1 for prompts.

    states: float [B, S, d], what the backbone's last layer reads, after its input norm. seen: bool [B or 1, Q, S],
    which positions are the history of each group: all before its placeholders, and no placeholders.
    """

    states: Tensor
    seen: Tensor


class DraftHead(nn.Module):
    """NEZHA's autoregressive draft head (arXiv 2511.18793), for L levels of T_l codes on hidden size d:

        s_1 = P h_0;   p_l = softmax(W_l h_l + R_l s_l)
        s' = s_l + O_l (silu(g) * v),   [g, v] = U_l e_l[c_l] + b_l + V_l s_l
        s_{l+1} = s' + M_l attention(Q_l s' / rms(s'), K X, V X)

    h_0 is the hidden state of the last history token, h_1 .. h_L those of the placeholders, and X the states of the
    history's tokens in a `History`. The paper has P = 1, R_l = W_l and the transition
    tanh(U_l e_l[c_l] + b_l + V_l s_l). Here what every beam computes has sizes of its own, `state_size` of s_l and e_l
    and `transition_size` of g and v, so that a wide beam costs the same on any backbone. A gated block on a residual
    path recommends better than the tanh cell, and better still if each beam looks back at the history, with
    `attention_heads` heads, once it knows its code (docs/recipe.md). With 0 heads s_{l+1} = s', and no `History` is
    read.
    """

    def __init__(
        self,
        levels: Sequence[int],
        hidden_size: int,
        state_size: int,
        transition_size: int,
        attention_heads: int = 0,
    ) -> None:
        super().__init__()
        self.levels, self.state_size, self.transition_size = tuple(levels), state_size, transition_size
        self.attention_heads = attention_heads
        before = self.levels[:-1]
        if attention_heads:
            self.transition_keys = nn.Linear(hidden_size, state_size, bias=False)
            self.transition_values = nn.Linear(hidden_size, state_size, bias=False)
            self.transition_queries = nn.ModuleList(nn.Linear(state_size, state_size, bias=False) for _ in before)
            self.transition_mixes = nn.ModuleList(nn.Linear(state_size, state_size, bias=False) for _ in before)
            for weight in self.transition_mixes.parameters():
                if not weight.is_meta:  # a head whose weights are still to be loaded
                    nn.init.zeros_(weight)  # training begins with transitions that read nothing
        self.initial_state = nn.Linear(hidden_size, state_size, bias=False)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, size, bias=False) for size in self.levels)
        self.state_projections = nn.ModuleList(nn.Linear(state_size, size, bias=False) for size in self.levels)
        self.embeddings = nn.ModuleList(nn.Embedding(size, state_size) for size in before)
        self.transition_inputs = nn.ModuleList(nn.Linear(state_size, 2 * transition_size) for _ in before)
        self.transition_states = nn.ModuleList(nn.Linear(state_size, 2 * transition_size, bias=False) for _ in before)
        self.transition_outputs = nn.ModuleList(nn.Linear(transition_size, state_size, bias=False) for _ in before)

    def logits(self, hidden: Tensor, codes: Tensor, history: History | None) -> list[Tensor]:
        """Teacher-forced logits of Q groups of placeholders in each of B sequences.

        hidden [B, Q, L + 1, d], true codes int64 [B, Q, L] -> per level [B, Q, T_l].
        """
        state = self.initial_state(hidden[..., 0, :])
        read = self._read(history)
        out = []
        for level in range(len(self.levels)):
            out.append(self._logits(level, hidden[..., level + 1, :], state))
            if level + 1 < len(self.levels):
                moved = self._moved(level, state)
                state = self._next(level, codes[..., level], state, moved, state.shape[1], read)
        return out

    def beam(
        self,
        hidden: Tensor,
        history: History | None,
        masks: Masks,
        beam_width: int,
    ) -> Drafted:
        """Beam search of `beam_width` K inside the head, masked by valid prefixes.

        hidden: float [B, L + 1, d]. K is smaller only if the space has fewer tuples.
        """
        beams = Beams(hidden.shape[0], self.levels, masks, beam_width)
        state = self.initial_state(hidden[:, :1])
        read = self._read(history)
        for level in range(len(self.levels)):
            parent, code = beams.step(level, self._logits(level, hidden[:, level + 1 : level + 2], state))
            if level + 1 < len(self.levels):
                state, moved = self._of_children(beams, level, state, parent)
                state = self._next(level, code, state, moved, beams.width(level), read)
        return beams.drafted

    def _of_children(self, beams: Beams, level: int, state: Tensor, parent: Tensor) -> tuple[Tensor, list[Tensor]]:
        """s_l of the parents [B, W, state_size] -> s_l and `_moved` of their children, [B, R, ..] or [B, 1, ..]."""
        if beams.width(level - 1) == 1:  # broadcast to all children
            return state, self._moved(level, state)
        own = beams.of_parents(level, state, parent)
        if 2 * beams.width(level - 1) > beams.width(level):
            return own, self._moved(level, own)
        # Far fewer parents than children: so are their products, and that pays for gathering these.
        return own, [beams.of_parents(level, each, parent) for each in self._moved(level, state)]

    def _read(self, history: History | None) -> LayerCache | None:
        """Keys and values of the history, which all levels and beams share; None if the transitions read none."""
        if not self.attention_heads:
            return None
        assert history is not None
        heads = Heads(self.attention_heads, 1, self.state_size // self.attention_heads)
        keys, values = self.transition_keys(history.states), self.transition_values(history.states)
        mask = additive(history.seen, keys.dtype)[:, None]
        return LayerCache(heads, keys, values, history.states.shape[1], mask, heads.size**-0.5)

    def _logits(self, level: int, hidden: Tensor, state: Tensor) -> Tensor:
        """Of a level's codes, [..., T_l]: h_l [..., d] and s_l [..., state_size]."""
        return self.projections[level](hidden) + self.state_projections[level](state)

    def _moved(self, level: int, state: Tensor) -> list[Tensor]:
        """V_l s_l of states [..., state_size], the halves of g and v: halving [g, v] would copy what every beam has."""
        weight = cast(Tensor, self.transition_states[level].weight)
        return [F.linear(state, half) for half in weight.chunk(2)]

    def _next(
        self, level: int, code: Tensor, state: Tensor, moved: Sequence[Tensor], rows: int, read: LayerCache | None
    ) -> Tensor:
        """s_{l+1} of codes int64 [B, R] and s_l [B, R, state_size]. rows: R, for one request or Q of a sequence.

        moved: `_moved` of s_l. It and s_l may be [B, 1, ..], where all R have the same.
        """
        # The input half is projected for the whole code table, once: a constant in an exported graph.
        table: Tensor = self.transition_inputs[level](self.embeddings[level].weight)
        gate, value = (half[code] + own for half, own in zip(table.chunk(2, -1), moved, strict=True))
        state = state + self.transition_outputs[level](F.silu(gate) * value)
        if read is None:
            return state
        asked = self.transition_queries[level](unit_rms(state, _EPSILON))
        return state + self.transition_mixes[level](read.attend_prompt(asked, rows))
