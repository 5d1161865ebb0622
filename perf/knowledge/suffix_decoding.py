"""SuffixDecoding, a baseline: drafts from suffix trees of the text itself and of earlier ones, by its own scoring.

Source: Oliaro et al., "SuffixDecoding" (arXiv 2411.04975). Here its trees are the suffix arrays of `RetrievalPool`,
which hold the same: at most 8 tokens are matched and branches are at most 24 long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.knowledge.continuations import MAX_CONTEXT, MAX_DEPTH, MAX_NODES, Continuations, draft_trees
from genrec.knowledge.drafter import RunningText
from genrec.knowledge.pool_search import continuations
from genrec.knowledge.pools import GLOBAL, Pools
from genrec.knowledge.repeats import repeats
from genrec.knowledge.token_tree import EMPTY, TokenTree, TokenTrees


class SuffixDecodingDrafter:
    """For every length of match, in the text itself and in all earlier texts, a tree; the one of largest score wins.

    A tree is grown greedily from the most frequent continuations, to at most `factor` times as many tokens as were
    matched; its score is the sum of its tokens' frequencies, the products of the conditional ones down their branches.

    pools: the global one is drafted from. factor: alpha in the paper, which has 1 to 4.
    """

    def __init__(self, pools: Pools, factor: float = 4.0) -> None:
        if factor <= 0:
            raise ValueError(f"factor is {factor}; it must be above 0")
        self._pools, self._factor = pools, factor

    def draft(self, texts: Sequence[RunningText]) -> TokenTrees:
        best, scores = [EMPTY] * len(texts), [0.0] * len(texts)
        for source in (self._of_all_texts, self._of_the_text_itself):
            longest = [MAX_CONTEXT] * len(texts)
            for most in range(MAX_CONTEXT, 0, -1):
                # A tree scores at most its number of tokens: who has that already needs no shorter match.
                open_ = [at for at in range(len(texts)) if longest[at] == most and scores[at] < self._nodes(most)]
                if not open_:
                    continue
                found = source([texts[at] for at in open_], most)
                lengths = np.zeros(len(open_), np.int64)
                lengths[found.texts] = found.lengths
                trees = draft_trees(found, [min(texts[at].max_depth, MAX_DEPTH) for at in open_]).split()
                for at, length, tree in zip(open_, lengths.tolist(), trees, strict=True):
                    nodes = self._nodes(length)
                    tree = TokenTree(*(part[:nodes] for part in tree))  # the best come first
                    if (score := float(tree.shares.sum())) > scores[at]:
                        best[at], scores[at] = tree, score
                    longest[at] = length - 1
        return TokenTrees.of(best)

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        self._pools.add(texts, groups)

    def _nodes(self, length: int) -> int:
        return min(MAX_NODES, int(self._factor * length))

    def _of_all_texts(self, texts: Sequence[RunningText], most: int) -> Continuations:
        written = [text.tokens[text.start :] for text in texts]
        everything = self._pools.by_group[GLOBAL]
        return continuations([everything] * len(texts), written, np.arange(len(texts)), most=most)

    def _of_the_text_itself(self, texts: Sequence[RunningText], most: int) -> Continuations:
        return repeats([text.tokens for text in texts], self._pools.dtype, 1, most)
