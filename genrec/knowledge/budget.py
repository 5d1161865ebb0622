"""How many drafted tokens a forward pass verifies, and which: as many as make the texts grow fastest."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from genrec.knowledge.pass_cost import Pass, PassCost
from genrec.knowledge.survival import SurvivalChances
from genrec.knowledge.token_tree import EMPTY, TokenTree

_LOSS = 0.005  # of the time may go into asking for drafts that do not pay
_SELDOM = 256  # steps after which they are asked for at the latest
_PLAIN = 64  # every so many steps one goes without drafts, to tell what that costs
_PACE = 1 / 16  # weight of a step in the means
_MOST = 4.0  # times the expected seconds, beyond which a step only shows that something else had the machine


class VerificationBudget:
    """One budget of drafted tokens for all running texts, for each step anew.

    The tokens of all trees are ranked by their chance to survive (`SurvivalChances`). Of these the first n are verified
    for which the sum of chances, less the tokens that would be written in the time that the pass takes at the present
    pace, is greatest: one more would not earn its time. n may be 0; each text then still grows by a token.
    So one text gets a large tree, many texts small ones, and a machine that has no arithmetic to spare none.

    Whether drafting pays at all is judged by what came of it, not by what was expected: if steps with drafts took
    longer than their tokens were worth, drafts are asked for only so often that 0.5 % of the time is lost by it, and at
    least every 256th step. So they come back when they are useful again.

    cost: of a pass.
    min_share: of tokens that are worth drafting for the next step, a quarter of the least chance that was worth it.
    """

    def __init__(self, cost: PassCost) -> None:
        self.min_share = 0.0
        self.cost, self._chances = cost, SurvivalChances()
        self._steps, self._without = 0, 0  # steps in all, and since drafts were asked for
        # Of a step with drafts, over one without: tokens and seconds, running means.
        self._tokens, self._seconds = 2.0, 1.0

    def asks(self) -> bool:
        """Whether this step's drafts are to be asked for."""
        loss = self._seconds - self._tokens
        self._steps += 1
        self._without += 1
        if self._steps % _PLAIN == 0 or self._without < min(ceil(loss / _LOSS), _SELDOM):
            return False
        self._without = 0
        return True

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What of `trees`, one for each running text, is to be verified."""
        sizes = np.array([tree.size for tree in trees])
        total = int(sizes.sum())
        if not total:
            return list(trees)
        shares, chances = self.chances(trees)
        best = (-chances).argsort(kind="stable")  # parents are before their children, and as probable or more so
        owner = np.arange(len(trees)).repeat(sizes)
        tokens = np.append(0.0, chances.take(best).cumsum())
        seconds = self._seconds_of(len(trees), owner.take(best))
        pace = len(trees) / seconds[0] * max(1.0, self._tokens / self._seconds)
        most = int((tokens - pace * seconds).argmax())
        self.min_share = float(chances[best[max(most, 1) - 1]]) / 4
        if most == total:
            return list(trees)
        kept = np.zeros(total, bool)
        kept[best[:most]] = True
        # Numbers of the nodes that are left, within their trees.
        ends = sizes.cumsum()
        left = np.append(0, kept.cumsum())
        begins = left.take(ends - sizes)
        parents = np.concatenate([tree.parents for tree in trees])
        number = left[:-1].take((ends - sizes).take(owner) + np.maximum(parents, 0)) - begins.take(owner)
        nodes = kept.nonzero()[0]
        parents = np.where(parents < 0, -1, number).astype(np.int32).take(nodes)
        tokens_left, shares = np.concatenate([tree.tokens for tree in trees]).take(nodes), shares.take(nodes)
        return [
            TokenTree(tokens_left[begin:end], parents[begin:end], shares[begin:end]) if end > begin else EMPTY
            for begin, end in zip(begins.tolist(), left.take(ends).tolist(), strict=True)
        ]

    def chances(self, trees: Sequence[TokenTree]) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the nodes of all `trees`, float32 [n], and their chances to survive, float64 [n]."""
        shares = np.concatenate([tree.shares for tree in trees])
        depths, above = _depths(trees)
        chances = np.append(self._chances.of(shares, depths), 1.0)
        for parents in above:  # no more than that of any node above
            chances[:-1] = np.minimum(chances[:-1], chances.take(parents))
        return shares, chances[:-1]

    def learn(
        self, trees: Sequence[TokenTree], accepted: np.ndarray, seconds: float, drafting: float, asked: bool
    ) -> None:
        """Take note of a step.

        trees: that were verified, one for each text. accepted: bool, of the nodes of all of them, those that the texts
        went on with. seconds: of the pass. drafting: seconds of drafting, if it was `asked` for.
        """
        texts, drafted = len(trees), accepted.size
        if asked:
            alone = float(self._seconds_of(texts, np.empty(0, np.int64))[0])
            self._tokens += _PACE * (1 + accepted.sum() / texts - self._tokens)
            self._seconds += _PACE * (min((seconds + drafting) / alone, _MOST) - self._seconds)
        most = max(tree.size for tree in trees)
        self.cost.learn(Pass(texts, texts + drafted, texts * (1 + most), seconds))
        if drafted:
            self._chances.learn(np.concatenate([tree.shares for tree in trees]), _depths(trees)[0], accepted)

    def _seconds_of(self, texts: int, owners: np.ndarray) -> np.ndarray:
        """Of passes with the first 0 to n drafted tokens, float64 [n + 1]. owners: int64 [n], the text of each."""
        by_text = owners.argsort(kind="stable")
        ordered = owners.take(by_text)
        number = np.empty(owners.size, np.int64)
        number[by_text] = np.arange(1, owners.size + 1) - ordered.searchsorted(ordered)
        largest = np.append(0, np.maximum.accumulate(number))
        return self.cost.seconds(texts, np.arange(texts, texts + owners.size + 1), texts * (1 + largest))


def _depths(trees: Sequence[TokenTree]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of the nodes of all `trees`: their depths, int64 [n], from 1; and their ancestors 1, 2, 4, ... levels above.

    The ancestors, int64 [n] each, are numbers among all nodes, n above the trees.
    """
    sizes = np.array([tree.size for tree in trees])
    parents = np.concatenate([tree.parents for tree in trees])
    total = parents.size
    parents = np.where(parents < 0, total, parents + (sizes.cumsum() - sizes).repeat(sizes))
    depths, above, ancestors = np.append(np.ones(total, np.int64), 0), np.append(parents, total), list[np.ndarray]()
    while (above < total).any():  # twice as far each time
        ancestors.append(above[:-1])
        depths = depths + depths.take(above)
        above = above.take(above)
    return depths[:-1], ancestors
