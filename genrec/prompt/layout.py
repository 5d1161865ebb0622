"""The prompt: a query and a user's history as token ids, then the placeholders that hold the answer's places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from genrec.catalog import SemanticIdSpace

_MAX_TOKEN = 2**31 - 1
_NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class PromptLayout:
    """`[prefix] [query tokens] [SID tokens of item 1 .. item N, oldest first] <SP_1> .. <SP_L>` (arXiv 2511.18793).

    No end token follows the placeholders: attention is causal, so it could not change their hidden states. With
    markers it is `.. <begin> [item 1] <end> .. <begin> [item N] <end> <begin> <SP_1> .. <SP_L>`: the next item has
    begun, too.

    space: the semantic-ID space, L levels.
    prefix: token ids that start every prompt (a BOS token, if the backbone has one).
    placeholders: the L placeholder token ids; none for models that write the answer token by token.
    sid_tokens: per level, runs of `(first token id, count)` that together give the token id of each code. One run
        per level for a vocabulary made for this; as many as needed for a tokenizer that already holds SID tokens.
    max_history: items kept of a history, the most recent ones.
    drop_block: items that a history longer than that loses together, the oldest first. With 1 it always keeps
        max_history items, so every new item shifts the prompt; with b it keeps max_history - b + 1 to max_history, and
        the prompts of a user's next visits start alike: a cached prefix serves up to b of them.
    max_query: tokens kept of a query, the first ones; 0 for a model that was not trained with queries.
    text_offset, text_tokens: the text tokenizer's id t, of `text_tokens`, is token text_offset + t. A vocabulary made
        for this has its text tokens apart; at offset 0 (a tokenizer of the backbone's own) they may hold SID tokens,
        placeholders or the prefix, and a query's text can then not produce those.
    markers: the token ids that begin and end an item, for a backbone that was trained with such; else none.
    """

    space: SemanticIdSpace
    prefix: tuple[int, ...]
    placeholders: tuple[int, ...]
    sid_tokens: tuple[tuple[tuple[int, int], ...], ...]
    max_history: int
    max_query: int = 0
    text_offset: int = 0
    text_tokens: int = 0
    drop_block: int = 1
    markers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        depth = self.space.depth
        if len(self.placeholders) not in (0, depth) or len(self.sid_tokens) != depth:
            raise ValueError(
                f"a layout of {depth} levels needs as many placeholders and token maps, "
                f"got {len(self.placeholders)} and {len(self.sid_tokens)}"
            )
        if len(self.markers) not in (0, 2):
            raise ValueError(f"markers {self.markers} must be the token that begins an item and the one that ends it")
        special = self.prefix + self.placeholders + self.markers
        runs = [run for level in self.sid_tokens for run in level]
        if min(special, default=0) < 0 or any(first < 0 or count < 1 for first, count in runs):
            raise ValueError("token ids must not be negative, and a run of a token map holds at least one")
        # Before any array is made: a damaged manifest may say anything.
        ends = [*special, *(first + count - 1 for first, count in runs), self.text_offset + self.text_tokens]
        if max(ends) > _MAX_TOKEN:
            raise ValueError(f"token id {max(ends)} is above {_MAX_TOKEN}{self._largest_level}")
        for level, size in enumerate(self.space.levels):
            count = sum(n for _, n in self.sid_tokens[level])
            if count != size:
                raise ValueError(f"level {level} has {size} codes but its token map covers {count}")
        if np.unique(self._code_tokens).size != self._code_tokens.size or len(set(self.placeholders)) != len(
            self.placeholders
        ):
            raise ValueError("every SID code and every placeholder needs a token id of its own")
        if np.isin(self._code_tokens, special).any():
            raise ValueError("a SID token is also used as a prefix or placeholder token or a marker")
        if self.max_history < 1:
            raise ValueError(f"max_history must be at least 1, got {self.max_history}")
        if not 1 <= self.drop_block <= self.max_history:
            raise ValueError(f"drop_block must be 1 to max_history, {self.max_history}, got {self.drop_block}")
        if min(self.max_query, self.text_offset, self.text_tokens) < 0 or (self.max_query > 0) != (
            self.text_tokens > 0
        ):
            raise ValueError(
                "max_query and text_tokens must both be positive, or both 0 for no queries; "
                f"got {self.max_query} and {self.text_tokens}, text_offset {self.text_offset}"
            )
        if self.text_offset > 0 and self._reserved:
            raise ValueError(
                f"text tokens {self.text_offset} to {self.text_offset + self.text_tokens - 1} are also used as SID, "
                "prefix, placeholder or marker tokens"
            )

    @property
    def _largest_level(self) -> str:
        """What may be behind token ids that are too large, if codes are: hashes or ids in the place of codes."""
        if sum(self.space.levels) < _MAX_TOKEN // 2:
            return ""
        level, size = max(enumerate(self.space.levels), key=lambda each: each[1])
        return f": level {level} has {size} codes, by its largest; number the codes of each level from 0 without gaps"

    @classmethod
    def contiguous(
        cls, space: SemanticIdSpace, max_history: int, max_query: int = 0, text_tokens: int = 0
    ) -> PromptLayout:
        """The layout of a vocabulary made for this.

        0 padding, 1 BOS, then placeholders, then codes level by level, then the text tokens.
        """
        first = 2 + space.depth
        starts = first + np.cumsum([0, *space.levels[:-1]])
        return cls(
            space=space,
            prefix=(1,),
            placeholders=tuple(range(2, first)),
            sid_tokens=tuple(((int(start), size),) for start, size in zip(starts, space.levels, strict=True)),
            max_history=max_history,
            max_query=max_query,
            text_offset=first + sum(space.levels) if max_query else 0,
            text_tokens=text_tokens,
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.opening) + self.max_query + self.max_history * self.item_tokens + len(self.placeholders)

    @property
    def opening(self) -> tuple[int, ...]:
        """Token ids before the first item's codes, without a query's."""
        return self.prefix + self.markers[:1]

    @property
    def item_tokens(self) -> int:
        """Tokens of an item: its codes, and its markers."""
        return self.space.depth + len(self.markers)

    @property
    def vocabulary_size(self) -> int:
        """The smallest vocabulary that holds every token id of the layout."""
        text = self.text_offset + self.text_tokens - 1 if self.text_tokens else 0
        return max(*self.prefix, *self.placeholders, *self.markers, int(self._code_tokens.max()), text) + 1

    def recent(self, history: np.ndarray) -> np.ndarray:
        """The items of a whole history that its prompt keeps: [N, ...], oldest first -> [n, ...].

        Where the kept part starts depends on N, so `drop_block` above 1 needs histories from their beginning.
        """
        excess = max(0, len(history) - self.max_history)
        return history[-(-excess // self.drop_block) * self.drop_block :]

    def tokens_of(self, sids: np.ndarray) -> np.ndarray:
        """Token ids of semantic IDs: integers [..., L] -> int32 [..., L]."""
        return self._code_tokens[sids + self._level_starts]

    def history_tokens(self, sids: np.ndarray) -> np.ndarray:
        """Token ids of N items behind `opening`: integers [..., N, L] -> int32 [..., N * item_tokens].

        Behind an item's codes stand its end and the next one's begin, if there are markers.
        """
        tokens = self.tokens_of(sids)
        if self.markers:
            behind = np.broadcast_to(np.asarray(self.markers[::-1], np.int32), (*tokens.shape[:-1], 2))
            tokens = np.concatenate([tokens, behind], -1)
        return tokens.reshape(*tokens.shape[:-2], -1)

    def level_tokens(self, level: int) -> np.ndarray:
        """int32 [T_l]: the token id of each code of `level`."""
        return self._code_tokens[self._level_starts[level] :][: self.space.levels[level]]

    def query_tokens(self, text_ids: Sequence[int]) -> np.ndarray:
        """A query's tokens, int32 [at most max_query], of the text tokenizer's ids.

        Ids that the layout uses otherwise are left out: text must not pass for an item. Raises ValueError for ids
        outside the text tokens.
        """
        # Python's own integers: a query has a handful, for which numpy takes ten times as long.
        if text_ids and not 0 <= min(text_ids) <= max(text_ids) < self.text_tokens:
            raise ValueError(f"text ids {min(text_ids)} to {max(text_ids)} are outside [0, {self.text_tokens})")
        kept = [self.text_offset + text_id for text_id in text_ids if text_id not in self._reserved]
        return np.array(kept[: self.max_query], np.int32)

    def encode(self, sids: np.ndarray, query_tokens: np.ndarray = _NOTHING) -> np.ndarray:
        """The prompt of one history: integers [N, L], oldest first -> int32 [P], P at most `max_tokens`.

        query_tokens: as `query_tokens` gives them. Raises ValueError for more than max_query.
        """
        return self._joined(self.recent(sids), query_tokens)

    def encode_history(
        self, history: np.ndarray, catalog_sids: np.ndarray, query_tokens: np.ndarray = _NOTHING
    ) -> np.ndarray:
        """As `encode`, of catalogue rows: history int [N], oldest first, catalog_sids int [items, L]."""
        return self._joined(catalog_sids[self.recent(history)], query_tokens)

    def _joined(self, sids: np.ndarray, query_tokens: np.ndarray) -> np.ndarray:
        if len(query_tokens) > self.max_query:
            raise ValueError(f"a query of {len(query_tokens)} tokens, but this layout holds {self.max_query}")
        return np.concatenate([self._head, query_tokens, self._begin, self.history_tokens(sids), self._tail])

    @cached_property
    def _head(self) -> np.ndarray:
        return np.asarray(self.prefix, np.int32)

    @cached_property
    def _begin(self) -> np.ndarray:
        return np.asarray(self.markers[:1], np.int32)

    @cached_property
    def _tail(self) -> np.ndarray:
        return np.asarray(self.placeholders, np.int32)

    @cached_property
    def _reserved(self) -> frozenset[int]:
        """Text ids whose tokens the layout uses otherwise."""
        used = (
            np.concatenate([self._head, self._tail, np.asarray(self.markers, np.int32), self._code_tokens])
            - self.text_offset
        )
        return frozenset(used[(used >= 0) & (used < self.text_tokens)].tolist())

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
