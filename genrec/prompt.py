"""The prompt: a user's history as token ids, followed by the placeholders that hold the answer's places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec.semantic_id import SemanticIdSpace


@dataclass(frozen=True)
class PromptLayout:
    """`[prefix] [SID tokens of item 1 .. item N, oldest first] <SP_1> .. <SP_L>` (NEZHA, arXiv 2511.18793).

    No end token follows the placeholders: attention is causal, so it could not change their hidden states.

    space: the semantic-ID space, L levels.
    prefix: token ids that start every prompt (a BOS token, if the backbone has one).
    placeholders: the L placeholder token ids.
    sid_tokens: per level, runs of `(first token id, count)` that together give the token id of each code. One run
        per level for a vocabulary made for this; as many as needed for a tokenizer that already holds SID tokens.
    max_history: items kept of a history, the most recent ones.
    """

    space: SemanticIdSpace
    prefix: tuple[int, ...]
    placeholders: tuple[int, ...]
    sid_tokens: tuple[tuple[tuple[int, int], ...], ...]
    max_history: int

    def __post_init__(self) -> None:
        if len(self.placeholders) != self.space.depth or len(self.sid_tokens) != self.space.depth:
            raise ValueError(
                f"a layout of {self.space.depth} levels needs as many placeholders and token maps, "
                f"got {len(self.placeholders)} and {len(self.sid_tokens)}"
            )
        for level, size in enumerate(self.space.levels):
            count = sum(n for _, n in self.sid_tokens[level])
            if count != size:
                raise ValueError(f"level {level} has {size} codes but its token map covers {count}")
        used = np.concatenate([np.asarray(self.prefix + self.placeholders, np.int64), self._code_tokens])
        special = self.prefix + self.placeholders
        if used.min() < 0:
            raise ValueError("token ids must not be negative")
        if np.unique(self._code_tokens).size != self._code_tokens.size or len(set(self.placeholders)) != len(
            self.placeholders
        ):
            raise ValueError("every SID code and every placeholder needs a token id of its own")
        if np.isin(self._code_tokens, special).any():
            raise ValueError("a SID token is also used as a prefix or placeholder token")
        if self.max_history < 1:
            raise ValueError(f"max_history must be at least 1, got {self.max_history}")

    @classmethod
    def contiguous(cls, space: SemanticIdSpace, max_history: int) -> PromptLayout:
        """The layout of a vocabulary made for this: 0 padding, 1 BOS, then placeholders, then codes level by level."""
        first = 2 + space.depth
        starts = first + np.cumsum([0, *space.levels[:-1]])
        return cls(
            space=space,
            prefix=(1,),
            placeholders=tuple(range(2, first)),
            sid_tokens=tuple(((int(start), size),) for start, size in zip(starts, space.levels, strict=True)),
            max_history=max_history,
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.prefix) + (self.max_history + 1) * self.space.depth

    @property
    def vocabulary_size(self) -> int:
        """The smallest vocabulary that holds every token id of the layout."""
        return int(max(*self.prefix, *self.placeholders, self._code_tokens.max())) + 1

    def tokens_of(self, sids: np.ndarray) -> np.ndarray:
        """Token ids of semantic IDs: integers [..., L] -> int32 [..., L]."""
        return self._code_tokens[sids + self._level_starts]

    def level_tokens(self, level: int) -> np.ndarray:
        """int32 [T_l]: the token id of each code of `level`."""
        return self._code_tokens[self._level_starts[level] :][: self.space.levels[level]]

    def encode(self, sids: np.ndarray) -> np.ndarray:
        """The prompt of one history: integers [N, L], oldest first -> int32 [len(prefix) + min(N, max) * L + L]."""
        tokens = self.tokens_of(sids[-self.max_history :])
        return np.concatenate([self._head, tokens.ravel(), self._tail])

    @cached_property
    def _head(self) -> np.ndarray:
        return np.asarray(self.prefix, np.int32)

    @cached_property
    def _tail(self) -> np.ndarray:
        return np.asarray(self.placeholders, np.int32)

    @cached_property
    def _code_tokens(self) -> np.ndarray:
        """int32 [sum(T_l)]: token id of every code, level after level."""
        runs = [np.arange(first, first + count) for level in self.sid_tokens for first, count in level]
        return np.concatenate(runs).astype(np.int32)

    @cached_property
    def _level_starts(self) -> np.ndarray:
        return np.cumsum([0, *self.space.levels[:-1]])


def runs_of(token_ids: np.ndarray) -> tuple[tuple[int, int], ...]:
    """`(first, count)` runs of consecutive ids that spell out `token_ids` (integers [T]), in order."""
    token_ids = np.asarray(token_ids, np.int64)
    starts = np.flatnonzero(np.diff(token_ids, prepend=token_ids[0] - 2) != 1)
    counts = np.diff(starts, append=token_ids.size)
    return tuple((int(token_ids[start]), int(count)) for start, count in zip(starts, counts, strict=True))
