"""The draft head: one tiny autoregressive step per level on the hidden states of a single prefill.

The single source of its mathematics: training calls `logits`, every engine runs or traces `beam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from genrec.model.beam import Beams


class DraftHead(nn.Module):
    """NEZHA's autoregressive draft head (arXiv 2511.18793), for L levels of T_l codes on hidden size d:

        s_1 = P h_0;   p_l = softmax(W_l h_l + R_l s_l)
        s_{l+1} = s_l + O_l (silu(g) * v),   [g, v] = U_l e_l[c_l] + b_l + V_l s_l

    h_0 is the hidden state of the last history token, h_1 .. h_L those of the placeholders. The paper has P = 1,
    R_l = W_l and the transition tanh(U_l e_l[c_l] + b_l + V_l s_l). Here what every beam computes has sizes of its own,
    `state_size` of s_l and e_l and `transition_size` of g and v, so that a wide beam costs the same on any backbone; a
    gated block on a residual path recommends better than the tanh cell (docs/quality.md).
    """

    def __init__(self, levels: Sequence[int], hidden_size: int, state_size: int, transition_size: int) -> None:
        super().__init__()
        self.levels, self.state_size, self.transition_size = tuple(levels), state_size, transition_size
        before = self.levels[:-1]
        self.initial_state = nn.Linear(hidden_size, state_size, bias=False)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, size, bias=False) for size in self.levels)
        self.state_projections = nn.ModuleList(nn.Linear(state_size, size, bias=False) for size in self.levels)
        self.embeddings = nn.ModuleList(nn.Embedding(size, state_size) for size in before)
        self.transition_inputs = nn.ModuleList(nn.Linear(state_size, 2 * transition_size) for _ in before)
        self.transition_states = nn.ModuleList(nn.Linear(state_size, 2 * transition_size, bias=False) for _ in before)
        self.transition_outputs = nn.ModuleList(nn.Linear(transition_size, state_size, bias=False) for _ in before)

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Teacher-forced logits: hidden [..., L + 1, d], true codes int64 [..., L] -> per level [..., T_l]."""
        state = self.initial_state(hidden[..., 0, :])
        out = []
        for level in range(len(self.levels)):
            out.append(self._logits(level, hidden[..., level + 1, :], state))
            if level + 1 < len(self.levels):
                state = self._next(level, codes[..., level], state)
        return out

    def beam(
        self, hidden: Tensor, prefix_bits: Sequence[Tensor], first_child: Sequence[Tensor], beam_width: int
    ) -> tuple[Tensor, Tensor]:
        """Beam search of `beam_width` K inside the head, masked by valid prefixes.

        hidden: float [B, L + 1, d]. prefix_bits, first_child: the arrays of a `PrefixTrie` (uint8, int32), per level.
        Returns codes int64 [B, K] and scores float32 [B, K], as in `Beams`; K is smaller only if the space has fewer
        tuples.
        """
        beams = Beams(hidden.shape[0], self.levels, prefix_bits, first_child, beam_width)
        state = self.initial_state(hidden[:, :1])
        for level in range(len(self.levels)):
            parent, code = beams.step(level, self._logits(level, hidden[:, level + 1 : level + 2], state))
            if level + 1 < len(self.levels):
                state = self._next(level, code, beams.of_parents(level, state, parent))
        return beams.codes, beams.scores

    def _logits(self, level: int, hidden: Tensor, state: Tensor) -> Tensor:
        """Of a level's codes, [..., T_l]: h_l [..., d] and s_l [..., state_size]."""
        return self.projections[level](hidden) + self.state_projections[level](state)

    def _next(self, level: int, code: Tensor, state: Tensor) -> Tensor:
        """s_{l+1} of codes int64 [...] and s_l [..., state_size]."""
        # The input half is projected for the whole code table, once: a constant in an exported graph. So are the halves
        # of the weights, where halving [g, v] would copy what every beam has.
        table: Tensor = self.transition_inputs[level](self.embeddings[level].weight)
        weight = cast(Tensor, self.transition_states[level].weight)
        gate, value = (
            half[code] + F.linear(state, rows) for half, rows in zip(table.chunk(2, -1), weight.chunk(2), strict=True)
        )
        return state + self.transition_outputs[level](F.silu(gate) * value)
