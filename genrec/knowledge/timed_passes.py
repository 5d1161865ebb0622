"""What forward passes of a decoder cost on this machine, tried out before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from genrec.knowledge.drafter import RunningText
from genrec.knowledge.pass_cost import Pass
from genrec.knowledge.texts import TextRequest
from genrec.knowledge.token_tree import TokenTree, TokenTrees

if TYPE_CHECKING:
    from genrec.knowledge.decoder import SpeculativeDecoder

# Passes that are timed at the start: texts at most, tokens that each has before, tokens of each in the pass.
_TIMED_TEXTS = 16
_TIMED_CONTEXT = 96
_TIMED_SIZES = (1, 2, 3, 5, 9, 17, 33, 65)
_TIMED_ROUNDS = 4
_TIMING_S = 0.25  # after which no further round is begun, of one text and again of several


def timed_passes(made: SpeculativeDecoder) -> list[Pass]:
    """Passes of different sizes over one text and over several: the fastest of a few, as pauses tell nothing."""
    decoder, fastest = copy(made), dict[Pass, float]()
    decoder.stops, decoder.max_length, decoder.budget = np.zeros_like(made.stops), made.model.max_length, None
    prompt = np.zeros(min(_TIMED_CONTEXT, decoder.max_length // 2), np.int64)
    for texts in sorted({1, min(made.batch_size, _TIMED_TEXTS)}):
        decoder.drafter = filling = _Filling()
        session = decoder.session()
        for _ in range(texts):
            session.submit(TextRequest(prompt, max_new_tokens=decoder.max_length - prompt.size))
        session.step()
        # Of every text as many tokens, then of one alone: what is padded to the largest tree is told apart.
        sizes = [(size, size) for size in _TIMED_SIZES] + [(size, 1) for size in _TIMED_SIZES[-3:] if texts > 1]
        began = perf_counter()
        for _ in range(_TIMED_ROUNDS):
            if session.pending < texts or perf_counter() - began > _TIMING_S:
                break
            for first, others in sizes:
                filling.nodes, statistics = (first - 1, others - 1), copy(session.statistics)
                if len(session.step()) < texts:
                    break
                seconds = session.statistics.total_s - statistics.total_s
                seconds -= session.statistics.draft_s - statistics.draft_s
                size = Pass(texts, first + others * (texts - 1), first * texts, 0.0)
                fastest[size] = min(seconds, fastest.get(size, seconds))
    return [size._replace(seconds=seconds) for size, seconds in fastest.items()]


class _Filling:
    """Drafts as many alternatives of the next token as `nodes` says, of the first text and of others: for timing."""

    nodes = (0, 0)

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        first, others = (
            TokenTree(np.zeros(nodes, np.int32), np.full(nodes, -1, np.int32), np.ones(nodes, np.float32))
            for nodes in self.nodes
        )
        return TokenTrees.of([first, *[others] * (len(texts) - 1)])

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        """Nothing."""
