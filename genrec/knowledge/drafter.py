"""Where drafts come from: retrieval pools, or the running text itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from genrec.knowledge.continuations import MAX_DEPTH, MAX_NODES, Continuations, draft_trees
from genrec.knowledge.pools import Pools
from genrec.knowledge.repeats import repeats
from genrec.knowledge.token_tree import EMPTY, TokenTree, TokenTrees


class RunningText(NamedTuple):
    """A text that is being written.

    tokens: int32 [n], a prompt of `start` tokens and the text so far. group: of its entity. max_depth: tokens of a
    draft that could still be used, at least 1; deeper trees are allowed but wasteful. min_share: of tokens that are
    worth drafting; less probable ones are allowed too.
    """

    tokens: np.ndarray
    start: int
    group: str
    max_depth: int
    min_share: float = 0.0


class Drafter(Protocol):
    """What a `SpeculativeDecoder` asks for drafts."""

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        """What may follow each of `texts`, at least one; all of a step are asked for at once."""

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        """Take note of finished texts, int32 [n] each without the prompt, and of their groups."""


class PoolDrafter:
    """Drafts from retrieval pools, by the text without its prompt, and from the prompt and the text themselves.

    The best settings depend on what a drafted token costs: next to nothing where the model waits for memory (a large
    model, a small batch), as much as any other token where it waits for arithmetic (a CPU, a large batch). By default
    much is drafted, and the decoder's `VerificationBudget` says how much of it is verified.

    max_nodes, max_depth, min_share, discount: as in `draft_trees`. group_weight, own_weight: how many times as much a
    match in the group's pool, or in the prompt and the text so far, counts as one of as many tokens in the global pool;
    0 to leave them out. Without both this is plain retrieval-based decoding; with a very large group_weight the group
    decides wherever it knows anything, as published.
    """

    def __init__(
        self,
        pools: Pools,
        *,
        max_nodes: int = MAX_NODES,
        max_depth: int = MAX_DEPTH,
        min_share: float = 0.01,
        discount: float = 0.05,
        group_weight: float = 1.3,
        own_weight: float = 0.6,
    ) -> None:
        for name, value, limit in (("max_nodes", max_nodes, MAX_NODES), ("max_depth", max_depth, MAX_DEPTH)):
            if not 1 <= value <= limit:
                raise ValueError(f"{name} is {value}; it must be 1 to {limit}")
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share is {min_share}; it must be 0 to 1")
        for name, number in (("discount", discount), ("group_weight", group_weight), ("own_weight", own_weight)):
            if number < 0:
                raise ValueError(f"{name} is {number}; it must not be negative")
        self._pools, self._max_nodes, self._max_depth, self._min_share = pools, max_nodes, max_depth, min_share
        self._discount, self._group_weight, self._own_weight = discount, group_weight, own_weight

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        written, groups = [text.tokens[text.start :] for text in texts], [text.group for text in texts]
        found = self._pools.continuations(written, groups, self._group_weight > 0)
        if self._own_weight:
            own = repeats([text.tokens for text in texts], self._pools.dtype, source=2)
            found = Continuations.joined(found, own)
        return draft_trees(
            found,
            [min(text.max_depth, self._max_depth) for text in texts],
            weights=(1.0, self._group_weight, self._own_weight),
            max_nodes=self._max_nodes,
            min_share=max(self._min_share, min(text.min_share for text in texts)),
            discount=self._discount,
        )

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        self._pools.add(texts, groups)


class PromptLookupDrafter:
    """Prompt lookup decoding, a baseline: copies what followed the first earlier occurrence of the last tokens.

    Source: `PromptLookupCandidateGenerator` of transformers (Saxena, "Prompt Lookup Decoding", 2023).

    max_ngram: most tokens to look for; fewer are tried, down to one. max_tokens: most tokens to copy.
    """

    def __init__(self, max_ngram: int = 2, max_tokens: int = 10) -> None:
        for name, value in (("max_ngram", max_ngram), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self._max_ngram, self._max_tokens = max_ngram, max_tokens

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        return TokenTrees.of([self._draft(text.tokens, text.max_depth) for text in texts])

    def _draft(self, tokens: np.ndarray, max_depth: int) -> TokenTree:
        last = tokens.size - 1
        for size in range(min(self._max_ngram, last), 0, -1):
            same = tokens[size - 1 : last] == tokens[last]
            for back in range(1, size):
                same &= tokens[size - 1 - back : last - back] == tokens[last - back]
            first = int(same.argmax())
            if same[first]:
                behind = first + size
                return TokenTree.chain(tokens[behind : behind + min(self._max_tokens, max_depth)])
        return EMPTY

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        """Nothing: only the running text is searched."""
