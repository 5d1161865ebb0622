"""The downstream check on shoppers whose taste can be read from texts, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from genrec_builders.data import Dataset, Interactions, ItemTable
from perf.knowledge.features import NONE, EntityTexts, compare_texts

TASTES = ("tents and torches", "beans with crema", "novels of crime", "tyres or tubes")
USERS, ITEMS = 480, 240


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """User u takes three items of taste u % 4; item i is of taste i % 4.

    Only the first is trained on, and every item is as popular as the others: nothing but texts tells tastes.
    """
    rng = np.random.default_rng(0)
    taken = []
    for u in range(USERS):
        first = u // 4 % (ITEMS // 4)
        others = rng.permutation(np.delete(np.arange(ITEMS // 4), first))[:2]
        taken.append(u % 4 + 4 * np.array([first, *others]))
    rows = np.concatenate(taken).astype(np.int32)
    users = [f"u{u}" for u in range(USERS)]
    return Dataset(ItemTable([f"i{i}" for i in range(ITEMS)]), Interactions(users, np.arange(USERS + 1) * 3, rows))


def texts(order: np.ndarray) -> EntityTexts:
    users = {f"u{u}": f"Likes {TASTES[int(order[u]) % 4]}." for u in range(USERS)}
    return EntityTexts(users, {f"i{i}": f"One of {TASTES[i % 4]}." for i in range(ITEMS)})


def test_true_texts_help_and_shuffled_ones_do_not(shop: Dataset) -> None:
    true, shuffled = texts(np.arange(USERS)), texts(np.random.default_rng(1).permutation(USERS))
    result = compare_texts(shop, {"true": true, "shuffled": shuffled})
    assert len(result.users) == USERS
    # Texts rank the user's taste first: of the negatives, the quarter of the same taste is a coin toss.
    assert result.auc["true"].mean() == pytest.approx(1 - 0.25 / 2, abs=0.02)
    assert result.auc[NONE].mean() == pytest.approx(0.5, abs=0.04)
    # Not quite: of so few users, the taste that a shuffled text tells and the true one are associated by chance.
    assert result.auc["shuffled"].mean() == pytest.approx(0.5, abs=0.08)
    helped = result.difference("true", "shuffled")
    assert helped is not None and helped.low > 0.4


def test_equal_texts_make_no_difference(shop: Dataset) -> None:
    result = compare_texts(shop, {"greedy": texts(np.arange(USERS)), "relaxed": texts(np.arange(USERS))})
    np.testing.assert_array_equal(result.auc["greedy"], result.auc["relaxed"])
    difference = result.difference("relaxed", "greedy")
    assert difference is not None and difference.relative == difference.low == difference.high == 0


def test_only_entities_with_texts_in_every_set_count(shop: Dataset) -> None:
    full = texts(np.arange(USERS))
    some = EntityTexts(dict(list(full.users.items())[:100]), full.items)
    assert compare_texts(shop, {"full": full, "some": some}).users == list(some.users)
    few = EntityTexts(dict(list(full.users.items())[:10]), full.items)
    with pytest.raises(ValueError, match="10 users and 240 items have texts"):
        compare_texts(shop, {"few": few})
    with pytest.raises(ValueError, match="'none' stands for no texts"):
        compare_texts(shop, {NONE: full})
