"""The draft head: one tiny autoregressive step per level on the hidden states of a single prefill.

The single source of its mathematics: training calls `logits`, every engine runs or traces `beam`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from genrec.model.beam import Beams, of_parents


class DraftHead(nn.Module):
    """NEZHA's autoregressive draft head (arXiv 2511.18793), for L levels of T_l codes on hidden size d:

        s_1 = h_0;   p_l = softmax(W_l (h_l + s_l))
        s_{l+1} = s_l + O_l (silu(g) * v),   [g, v] = U_l e_l[c_l] + b_l + V_l s_l

    h_0 is the hidden state of the last history token, h_1 .. h_L those of the placeholders. The paper's transition is
    tanh(U_l e_l[c_l] + b_l + V_l s_l); this one, a gated block of `transition_size` on a residual path, recommends
    better (docs/quality.md).
    """

    def __init__(self, levels: Sequence[int], hidden_size: int, transition_size: int) -> None:
        super().__init__()
        self.levels, self.transition_size = tuple(levels), transition_size
        before = range(len(self.levels) - 1)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, size, bias=False) for size in self.levels)
        self.embeddings = nn.ModuleList(nn.Embedding(size, hidden_size) for size in self.levels[:-1])
        self.transition_inputs = nn.ModuleList(nn.Linear(hidden_size, 2 * transition_size) for _ in before)
        self.transition_states = nn.ModuleList(nn.Linear(hidden_size, 2 * transition_size, bias=False) for _ in before)
        self.transition_outputs = nn.ModuleList(nn.Linear(transition_size, hidden_size, bias=False) for _ in before)

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Teacher-forced logits: hidden [..., L + 1, d], true codes int64 [..., L] -> per level [..., T_l]."""
        state = hidden[..., 0, :]
        out = []
        for level, project in enumerate(self.projections):
            out.append(project(hidden[..., level + 1, :] + state))
            if level + 1 < len(self.levels):
                state = self._next(level, codes[..., level], state, self.transition_states[level](state))
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
        state = hidden[:, :1]
        for level, project in enumerate(self.projections):
            parent, code = beams.step(level, project(hidden[:, level + 1 : level + 2] + state))
            if level + 1 < len(self.levels):
                # Projected before the children take it over: there are fewer parents.
                projected = of_parents(self.transition_states[level](state), parent)
                state = self._next(level, code, of_parents(state, parent), projected)
        return beams.codes, beams.scores

    def _next(self, level: int, code: Tensor, state: Tensor, projected: Tensor) -> Tensor:
        """s_{l+1} of codes int64 [...], s_l [..., d] and V_l s_l [..., 2 * transition_size]."""
        # The input half is projected for the whole code table, once: a constant in an exported graph.
        table = self.transition_inputs[level](self.embeddings[level].weight)
        gate, value = (table[code] + projected).chunk(2, -1)
        return state + self.transition_outputs[level](F.silu(gate) * value)
