"""The verification budget: what it verifies, against trying all; and that no loop of its feedback gets stuck."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.knowledge.budget import VerificationBudget
from genrec.knowledge.pass_cost import Pass, PassCost
from genrec.knowledge.survival import SurvivalChances
from genrec.knowledge.token_tree import EMPTY, TokenTree, TokenTrees

FIXED, PER_TEXT, PER_TOKEN = 2e-3, 1e-4, 1e-4  # seconds, as on a CPU
DRAFTING = 3e-4


def seconds(texts: int, packed: int, per_token: float = PER_TOKEN) -> float:
    return FIXED + PER_TEXT * texts + per_token * packed


def measured(per_token: float = PER_TOKEN) -> list[Pass]:
    return [
        Pass(texts, texts * size, texts * size, seconds(texts, texts * size, per_token))
        for texts in (1, 16)
        for size in (1, 2, 3, 5, 9, 17, 33, 65)
    ] + [Pass(16, 15 + size, 16 * size, seconds(16, 15 + size, per_token)) for size in (17, 33, 65)]


def budget(per_token: float = PER_TOKEN) -> VerificationBudget:
    return VerificationBudget(PassCost(measured(per_token)))


def random_tree(rng: np.random.Generator, most: int = 20) -> TokenTree:
    """Shares fall along the branches, and the best nodes come first."""
    parents, shares = [], []
    for node in range(int(rng.integers(0, most))):
        parents.append(int(rng.integers(-1, node)) if node else -1)
        shares.append(rng.random() * (shares[parents[-1]] if parents[-1] >= 0 else 1.0))
    order = np.argsort(-np.array(shares), kind="stable")
    number = np.append(np.argsort(order), -1)
    tree = TokenTree(
        rng.integers(0, 9, len(shares)).astype(np.int32), np.array(parents, np.int32), np.array(shares, np.float32)
    )
    return TokenTree(tree.tokens[order], number[tree.parents[order]].astype(np.int32), tree.shares[order])


def paths(tree: TokenTree) -> list[tuple[float, ...]]:
    """Each node's branch, by shares, which are distinct. Fails where a child precedes its parent."""
    found: list[tuple[float, ...]] = []
    for share, parent in zip(tree.shares.tolist(), tree.parents.tolist(), strict=True):
        found.append((*found[parent], share) if parent >= 0 else (share,))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(0, 2e-3))
def test_what_is_verified_is_worth_most(seed: int, texts: int, per_token: float) -> None:
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng) for _ in range(texts)]
    ours = budget(per_token)
    cut = ours.cut(TokenTrees.of(trees)).split()
    for tree, left in zip(trees, cut, strict=True):  # whole branches of the tree, tokens with them
        tokens = dict(zip(paths(tree), tree.tokens.tolist(), strict=True))
        assert all(tokens[path] == token for path, token in zip(paths(left), left.tokens.tolist(), strict=True))
    verified = sum(tree.size for tree in cut)
    pace = 1.5 * texts / seconds(texts, texts, per_token)  # as is assumed at the start
    flat = np.concatenate([tree.shares for tree in trees])  # which the chances are as long as nothing was learnt
    ranked = np.sort(flat)[::-1]
    gains = [
        ranked[:drafted].sum() - pace * seconds(texts, texts + drafted, per_token) for drafted in range(flat.size + 1)
    ]
    assert gains[verified] > max(gains) - 0.02 * max(1.0, abs(max(gains)))


def chain(length: int, share: float) -> TokenTree:
    return TokenTree.chain(np.arange(length))._replace(shares=(share ** np.arange(1, length + 1)).astype(np.float32))


def test_the_more_texts_the_less_of_each_is_verified() -> None:
    def verified(share: float, texts: int, per_token: float = PER_TOKEN) -> list[int]:
        return budget(per_token).cut(TokenTrees.of([chain(24, share)] * texts)).sizes.tolist()

    per_text = [sum(verified(0.85, texts)) / texts for texts in (1, 4, 16, 64)]
    assert per_text == sorted(per_text, reverse=True)
    assert per_text[0] > 10 and per_text[-1] < 6
    assert verified(0.5, 3, per_token=0) == [24] * 3
    assert verified(0.5, 64, per_token=1e-2) == [0] * 64
    assert budget().cut(TokenTrees.empty(2)).sizes.tolist() == [0, 0]


class World:
    """Texts at a time, drafts that hold with a probability per token, and a clock."""

    def __init__(self, texts: int, ours: VerificationBudget, share: float, per_token: float = PER_TOKEN) -> None:
        self.texts, self.ours, self.share, self.per_token = texts, ours, share, per_token
        self.rng = np.random.default_rng(0)

    def run(self, steps: int, truth: float) -> float:
        """Tokens per second, over those of plain decoding. truth: probability of a token whose share is self.share."""
        tokens, clock = 0, 0.0
        for _ in range(steps):
            asked = self.ours.asks()
            drafted = [chain(16, self.share) if asked else EMPTY] * self.texts
            trees = self.ours.cut(TokenTrees.of(drafted)).split() if asked else drafted
            holds = [self.rng.random(tree.size) < truth for tree in trees]
            accepted = np.concatenate([np.logical_and.accumulate(one) for one in holds])
            took = seconds(self.texts, self.texts + accepted.size, self.per_token)
            drafting = DRAFTING * self.texts**0.5 if asked else 0.0
            if asked:
                self.ours.learn(accepted, took, drafting)
            else:
                self.ours.learn_plain(self.texts, took)
            tokens += self.texts + int(accepted.sum())
            clock += took + drafting
        return tokens / clock / (self.texts / seconds(self.texts, self.texts, self.per_token))


@pytest.mark.parametrize("texts", [1, 8, 64])
@pytest.mark.parametrize("per_token", [PER_TOKEN, 1e-3])
@pytest.mark.parametrize("truth", [0.0, 0.1, 0.3, 0.6])
def test_useless_drafts_cost_next_to_nothing(texts: int, per_token: float, truth: float) -> None:
    """Whatever the drafter holds of them, the machine or the number of texts; and useful ones are used."""
    world = World(texts, budget(per_token), share=0.9, per_token=per_token)
    assert world.run(1500, truth) > 0.98


@pytest.mark.parametrize("texts", [1, 8, 64])
def test_drafts_come_back_when_they_are_useful_and_go_when_they_are_not(texts: int) -> None:
    world = World(texts, budget(), share=0.9)
    useful = world.run(300, 0.9)
    assert useful > (2.5 if texts == 1 else 1.2)
    world.run(1000, 0.0)
    assert world.run(1000, 0.0) > 0.98
    world.run(2000, 0.9)
    assert world.run(300, 0.9) > 0.9 * useful


def test_a_cost_that_was_measured_wrong_is_learnt() -> None:
    """At the start the machine seems to have arithmetic to spare, or none: neither lasts."""
    right = World(32, budget(), 0.8).run(300, 0.8)
    for wrong in (1e-6, 5e-3):
        world = World(32, budget(wrong), share=0.8)
        world.run(1200, 0.8)
        assert world.run(300, 0.8) > 0.9 * right


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_whole_branches_are_verified_whatever_was_learnt(seed: int, texts: int) -> None:
    """Chances that rise down a branch, by what became of others, break no tree."""
    rng, ours = np.random.default_rng(seed), budget()
    for _ in range(10):
        trees = [random_tree(rng) for _ in range(texts)]
        cut = ours.cut(TokenTrees.of(trees)).split()
        begins = np.cumsum([0] + [tree.size for tree in cut])
        for tree, begin in zip(cut, begins.tolist(), strict=False):
            chances = ours.verified.chances[begin : begin + tree.size]
            below = tree.parents >= 0
            assert (chances[below] <= chances[tree.parents[below]]).all() and (0 <= chances).all()
            assert ours.verified.depths[begin : begin + tree.size].tolist() == tree.depths.tolist()
        for tree, left in zip(trees, cut, strict=True):
            assert set(paths(left)) <= set(paths(tree))
        ours.learn(rng.random(sum(tree.size for tree in cut)) < rng.random(), 5e-3, 0.0)


def test_chances_are_shares_at_first_then_what_was_accepted_and_are_forgotten() -> None:
    chances = SurvivalChances()
    shares, depths = np.full(50, 0.55), np.full(50, 3)
    assert chances.of(shares, depths) == pytest.approx(shares, abs=2e-3)
    for _ in range(30):
        chances.learn(shares, depths, np.arange(50) < 10)
    assert chances.of(shares, depths) == pytest.approx(0.2, abs=0.02)
    for _ in range(1000):
        chances.learn(np.array([0.02]), np.array([1]), np.array([False]))
    assert chances.of(shares, depths)[0] > 0.5


def test_the_cost_of_a_pass_is_fitted_and_pauses_tell_nothing() -> None:
    rng = np.random.default_rng(0)

    def error(cost: PassCost, truth: Callable[[int, int], float]) -> float:
        sizes = [(texts, texts * size) for texts in (5, 16) for size in (4, 12, 40)]
        found = [float(cost.seconds(texts, np.array([packed]), np.array([packed]))[0]) for texts, packed in sizes]
        return max(abs(one / truth(*size) - 1) for one, size in zip(found, sizes, strict=True))

    cost = PassCost(measured())
    assert error(cost, seconds) < 0.02
    for _ in range(300):  # three times as slow, with pauses
        texts = int(rng.integers(1, 17))
        packed = texts * int(rng.integers(1, 40))
        took = 3 * seconds(texts, packed) * (20 if rng.random() < 0.05 else 1)
        cost.learn(Pass(texts, packed, packed, took))
    assert error(cost, lambda texts, packed: 3 * seconds(texts, packed)) < 0.2


def test_passes_larger_than_those_that_were_timed_are_not_held_to_be_cheap() -> None:
    """By one timed pass alone a stretch may seem free, and then a budget grows into it."""
    sizes = [16 * size for size in (1, 2, 3, 5, 9, 17, 33, 65)]
    for seed in range(30):
        noise = np.random.default_rng(seed).uniform(0.97, 1.03, len(sizes))
        cost = PassCost(
            [Pass(16, size, size, (0.003 + 4e-5 * size) * by) for size, by in zip(sizes, noise.tolist(), strict=True)]
        )
        few, many = cost.seconds(16, np.array([1040, 2080]), np.array([1040, 2080]))
        assert 0.8 * 0.0416 < many - few < 1.2 * 0.0416
