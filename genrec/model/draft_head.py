"""The draft head: one tiny autoregressive step per level on the hidden states of a single prefill.

The single source of its mathematics: training calls `logits`, every engine runs or traces `beam`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Per byte: the additive mask of its 8 codes (bit set -> 0, clear -> -inf) and its number of set bits below bit i.
_BYTE_BITS = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
_LOG_MASK = torch.where(_BYTE_BITS == 1, 0.0, -torch.inf)
_RANK_BELOW = (_BYTE_BITS.cumsum(1) - _BYTE_BITS).flatten().to(torch.int32)
_BYTE_COUNT = _BYTE_BITS.sum(1).to(torch.int32)


class DraftHead(nn.Module):
    """NEZHA's autoregressive draft head (arXiv 2511.18793), for L levels of T_l codes on hidden size d:

        s_1 = h_0;   p_l = softmax(W_l (h_l + s_l));   s_{l+1} = tanh(U_l e_l[c_l] + b_l + V_l s_l)

    h_0 is the hidden state of the last history token, h_1 .. h_L those of the placeholders.
    """

    def __init__(self, levels: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.projections = nn.ModuleList(nn.Linear(hidden_size, size, bias=False) for size in self.levels)
        self.embeddings = nn.ModuleList(nn.Embedding(size, hidden_size) for size in self.levels[:-1])
        self.transition_inputs = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in self.levels[:-1])
        self.transition_states = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in self.levels[:-1]
        )

    def logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Teacher-forced logits: hidden [..., L + 1, d], true codes int64 [..., L] -> per level [..., T_l]."""
        state = hidden[..., 0, :]
        out = []
        for level, project in enumerate(self.projections):
            out.append(project(hidden[..., level + 1, :] + state))
            if level + 1 < len(self.levels):
                state = self._transition(level, codes[..., level], state)
        return out

    def beam(
        self, hidden: Tensor, prefix_bits: Sequence[Tensor], first_child: Sequence[Tensor], beam_width: int
    ) -> tuple[Tensor, Tensor]:
        """Beam search of `beam_width` K inside the head, masked by valid prefixes.

        hidden: float [B, L + 1, d]. prefix_bits, first_child: the arrays of a `PrefixTrie` (uint8, int32), per level.
        Returns codes int64 [B, K] (mixed radix) and scores float32 [B, K], falling, ties to the earlier beam;
        K is smaller only if the space has fewer tuples. A score adds up log-softmax over all T_l codes; beams that no
        valid prefix was left for score -inf.
        """
        batch = hidden.shape[0]
        state = hidden[:, :1]
        scores = hidden.new_zeros(batch, 1, dtype=torch.float32)
        codes = torch.zeros(batch, 1, dtype=torch.int64, device=hidden.device)
        nodes = torch.zeros(batch, 1, dtype=torch.int64, device=hidden.device)
        log_mask = _LOG_MASK.to(hidden.device)
        width, radix = 1, 1
        for level, size in enumerate(self.levels):
            log_p = self.projections[level](hidden[:, level + 1 : level + 2] + state).float().log_softmax(-1)
            bits = prefix_bits[level][nodes]
            masked = log_p + nn.functional.embedding(bits.int(), log_mask).flatten(2)[..., :size]
            total = (scores[..., None] + masked).flatten(1)
            next_width = min(beam_width, width * size)
            scores, chosen = total.topk(next_width, dim=1)
            parent = chosen // size
            code = chosen - parent * size
            codes = codes.gather(1, parent) + code * radix
            if level + 1 < len(self.levels):
                parent_bits = bits.gather(1, parent[..., None].expand(-1, -1, bits.shape[2]))
                base = first_child[level][nodes.gather(1, parent)].long()
                # Clipped, because a beam that no prefix allows (score -inf) and an unrestricted trie have no child.
                nodes = (base + _rank(parent_bits, code)).clamp(max=prefix_bits[level + 1].shape[0] - 1)
                state = state.gather(1, parent[..., None].expand(-1, -1, state.shape[2]))
                state = self._transition(level, code, state)
            width, radix = next_width, radix * size
        return codes, scores

    def _transition(self, level: int, code: Tensor, state: Tensor) -> Tensor:
        # The input half is projected for the whole code table, once: a constant in an exported graph.
        table = self.transition_inputs[level](self.embeddings[level].weight)
        return torch.tanh(table[code] + self.transition_states[level](state))


def _rank(bits: Tensor, code: Tensor) -> Tensor:
    """Set bits below bit `code`: bits uint8 [B, K, bytes], code int64 [B, K] -> int64 [B, K]."""
    at_byte = code // 8
    whole_bytes = torch.arange(bits.shape[2], device=bits.device) < at_byte[..., None]
    counts = _BYTE_COUNT.to(bits.device)[bits.long()]
    last = bits.gather(2, at_byte[..., None]).squeeze(2).long()
    below = _RANK_BELOW.to(bits.device)[last * 8 + code - at_byte * 8]
    return ((counts * whole_bytes).sum(2) + below).long()
