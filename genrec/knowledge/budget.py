"""How many drafted tokens a forward pass verifies, and which: as many as make the texts grow fastest."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np

from genrec.knowledge.pass_cost import Pass, PassCost
from genrec.knowledge.survival import SurvivalChances
from genrec.knowledge.token_tree import TokenTrees

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

    def cut(self, trees: TokenTrees) -> TokenTrees:
        """What of `trees`, of the running texts, is to be verified."""
        owner, texts = trees.owner, trees.sizes.size
        chances = _falling(self._chances.of(trees.shares, trees.depths), trees)
        best = (-chances).argsort(kind="stable")  # parents are before their children, and as probable or more so
        ranked = chances.take(best)
        padded = _padded(texts, owner.take(best))
        seconds = self.cost.seconds(texts, np.arange(texts, texts + best.size + 1), padded)
        pace = texts / seconds[0] * max(1.0, self._tokens / self._seconds)
        gain = pace * -seconds
        gain[1:] += ranked.cumsum()
        most = int(gain.argmax())
        self.min_share = float(ranked[max(most, 1) - 1]) / 4 if best.size else 0.0
        left = trees
        if most < best.size:
            nodes = np.sort(best[:most])
            left, chances = trees.chosen(nodes), chances.take(nodes)
        self.verified = Verified(texts, left.shares, left.depths, chances)
        self._alone, self._expected, self._padded = float(seconds[0]), float(seconds[most]), int(padded[most])
        return left

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
        self.cost.learn(Pass(texts, texts + accepted.size, self._padded, seconds), self._expected)
        if accepted.size:
            self._chances.learn(self.verified.shares, self.verified.depths, accepted)


def _falling(chances: np.ndarray, trees: TokenTrees) -> np.ndarray:
    """`chances`, float64 [n], of the nodes of `trees`, lowered to at most that of any node above."""
    chances, above = np.append(chances, 1.0), np.append(trees.parents, -1)  # -1 reads the last
    for _ in range(int(trees.depths.max(initial=0)).bit_length()):  # ancestors 1, 2, 4, ... levels away
        np.minimum(chances, chances.take(above), out=chances)
        above = above.take(above)
    return chances[:-1]


def _padded(texts: int, owners: np.ndarray) -> np.ndarray:
    """`Pass.padded` of passes with the first 0 to n drafted tokens: int64 [n + 1]. owners: int64 [n], texts of them."""
    if texts == 1:
        return np.arange(1, owners.size + 2)
    number = np.zeros(owners.size + 1, np.int64)  # of a token among those of its text, from 1
    by_text = owners.argsort(kind="stable")
    ordered = owners.take(by_text)
    number[by_text + 1] = np.arange(1, owners.size + 1) - ordered.searchsorted(ordered)
    return np.asarray(texts * (1 + np.maximum.accumulate(number)))
