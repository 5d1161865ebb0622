"""How many drafted tokens a forward pass verifies, and which: as many as make the texts grow fastest."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from genrec.knowledge.pass_cost import Pass, PassCost
from genrec.knowledge.survival import SurvivalChances
from genrec.knowledge.token_tree import EMPTY, TokenTree

_LOSS = 0.005  # of the time may go into asking for drafts that do not pay
_SELDOM = 256  # steps after which they are asked for at the latest
_PLAIN = 64  # every so many steps one goes without drafts, to tell what that costs
_PACE = 1 / 8  # weight of a step in the means
_MOST = 4.0  # times the expected seconds, beyond which a step only shows that something else had the machine


class Verified(NamedTuple):
    """What of the last drafts was verified. texts: whose they are. shares, depths, chances: of the nodes, [n] each."""

    texts: int
    shares: np.ndarray
    depths: np.ndarray
    chances: np.ndarray


class VerificationBudget:
    """One budget of drafted tokens for all running texts, for each step anew.

    The tokens of all trees are ranked by their chance to survive (`SurvivalChances`). Of these the first n are verified
    for which the sum of chances, less the tokens that would be written in the time that the pass takes at the present
    pace, is greatest: one more would not earn its time. n may be 0; each text then still grows by a token.
    So one text gets a large tree, many texts small ones, and a machine that has no arithmetic to spare none.

    Whether drafting pays at all is judged by what came of it, not by what was expected: if steps with drafts took
    longer than their tokens were worth, drafts are asked for only so often that 0.5 % of the time is lost by it, and at
    least every 256th step. So they come back when they are useful again.

    cost: of a pass. verified: by the last `cut`.
    min_share: of tokens that are worth drafting for the next step, a quarter of the least chance that was worth it.
    """

    def __init__(self, cost: PassCost) -> None:
        self.min_share = 0.0
        self.cost, self._chances = cost, SurvivalChances()
        self._steps, self._without = 0, 0  # steps in all, and since drafts were asked for
        # Of a step with drafts, over one without: tokens and seconds, running means.
        self._tokens, self._seconds = 1.5, 1.0

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
        tokens, parents, shares = map(np.concatenate, zip(*trees, strict=True))
        begins, owner = sizes.cumsum() - sizes, np.arange(sizes.size).repeat(sizes)
        depths, chances = self._depths_and_chances(parents, begins.take(owner), shares)
        best = (-chances).argsort(kind="stable")  # parents are before their children, and as probable or more so
        seconds, padded = self._seconds_of(sizes.size, owner.take(best))
        pace = sizes.size / seconds[0] * max(1.0, self._tokens / self._seconds)
        most = int((np.append(0.0, chances.take(best).cumsum()) - pace * seconds).argmax())
        self.min_share = float(chances[best[max(most, 1) - 1]]) / 4 if best.size else 0.0
        nodes = np.sort(best[:most])
        self.verified = Verified(sizes.size, shares.take(nodes), depths.take(nodes), chances.take(nodes))
        self._alone, self._padded = float(seconds[0]), int(padded[most])
        if most == best.size:
            return list(trees)
        # Numbers of the nodes that are left, within their trees.
        left = np.zeros(best.size + 1, np.int64)
        left[nodes + 1] = 1
        left = left.cumsum()
        first, owner, parents = left.take(begins), owner.take(nodes), parents.take(nodes)
        number = left.take(begins.take(owner) + np.maximum(parents, 0)) - first.take(owner)
        parents, tokens = np.where(parents < 0, -1, number).astype(np.int32), tokens.take(nodes)
        return [
            TokenTree(tokens[begin:end], parents[begin:end], self.verified.shares[begin:end]) if end > begin else EMPTY
            for begin, end in zip(first.tolist(), left.take(begins + sizes).tolist(), strict=True)
        ]

    def learn_plain(self, texts: int, seconds: float) -> None:
        """Take note of a step without drafts; seldom, as these steps are to cost what plain decoding costs."""
        if self._steps % _PLAIN == 0:
            self.cost.learn(Pass(texts, texts, texts, seconds))

    def learn(self, accepted: np.ndarray, seconds: float, drafting: float) -> None:
        """Take note of what came of the trees that `cut` gave last.

        accepted: bool, of the nodes of all of them, those that the texts went on with. seconds: of the pass. drafting:
        seconds of drafting.
        """
        texts = self.verified.texts
        self._tokens += _PACE * (1 + accepted.sum() / texts - self._tokens)
        self._seconds += _PACE * (min((seconds + drafting) / self._alone, _MOST) - self._seconds)
        self.cost.learn(Pass(texts, texts + accepted.size, self._padded, seconds))
        if accepted.size:
            self._chances.learn(self.verified.shares, self.verified.depths, accepted)

    def _depths_and_chances(
        self, parents: np.ndarray, begins: np.ndarray, shares: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of nodes of all trees: depths, int64 [n], from 1; and chances, float64 [n], at most that of any node above.

        parents: numbers within their trees; begins: of these trees. Ancestors are reached 1, 2, 4, ... levels away.
        """
        total = parents.size
        above = [np.append(np.where(parents < 0, total, parents + begins), total)]
        depths = np.ones(total + 1, np.int64)
        depths[-1] = 0
        while (above[-1] < total).any():
            depths += depths.take(above[-1])
            above.append(above[-1].take(above[-1]))
        chances = np.ones(total + 1)
        chances[:-1] = self._chances.of(shares, depths[:-1])
        for ancestors in above:
            np.minimum(chances, chances.take(ancestors), out=chances)
        return depths[:-1], chances[:-1]

    def _seconds_of(self, texts: int, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of passes with the first 0 to n drafted tokens: seconds, float64 [n + 1], and `Pass.padded`, int64 [n + 1].

        owners: int64 [n], the text of each token.
        """
        by_text = owners.argsort(kind="stable")
        ordered = owners.take(by_text)
        number = np.zeros(owners.size + 1, np.int64)
        number[by_text + 1] = np.arange(1, owners.size + 1) - ordered.searchsorted(ordered)
        padded = texts * (1 + np.maximum.accumulate(number))
        return self.cost.seconds(texts, np.arange(texts, texts + owners.size + 1), padded), padded
