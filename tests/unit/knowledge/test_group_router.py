"""Groups: learned clusters are those that were planted, and the rule that picks is the documented one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec.knowledge.groups import GroupRouter
from genrec.knowledge.pools import GLOBAL

ITEMS = 60  # 0..19, 20..39 and 40..54 are bought by different users, 55..59 by nobody
CATEGORIES = ["books"] * 30 + ["games"] * 20 + [""] * 5 + ["games"] * 5
BLOCKS = [np.arange(0, 20), np.arange(20, 40), np.arange(40, 55)]


@pytest.fixture(scope="module")
def router() -> GroupRouter:
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(90):
        bought = rng.permutation(BLOCKS[user % 3])[:8]
        users += [user] * bought.size
        items += bought.tolist()
    return GroupRouter.fit(
        np.array(users), np.array(items), CATEGORIES, dimensions=8, user_clusters=3, item_clusters=3, min_interactions=5
    )


def test_clusters_are_those_in_the_interactions(router: GroupRouter) -> None:
    of_items = [{router.item_group(int(row)) for row in block} for block in BLOCKS]
    assert [len(groups) for groups in of_items] == [1, 1, 1]
    assert len(set.union(*of_items)) == 3
    assert all(group.startswith("item:cluster:") for group in set.union(*of_items))
    # Users who were not there: histories of one block go to one cluster each.
    rng = np.random.default_rng(1)
    of_users = [{router.user_group(rng.permutation(block)[:6]) for _ in range(10)} for block in BLOCKS]
    assert [len(groups) for groups in of_users] == [1, 1, 1]
    assert len(set.union(*of_users)) == 3


def test_the_rule_that_picks(router: GroupRouter) -> None:
    assert router.user_group(np.array([0, 1, 2, 3, 4])).startswith("user:cluster:")
    assert router.user_group(np.array([0, 1, 2, 3])) == "user:category:books"
    # Items that nobody bought do not make a user warm, but say what the user likes.
    assert router.user_group(np.array([55, 56, 57, 58, 59])) == "user:category:games"
    assert router.user_group(np.array([0, 40])) == "user:category:games"
    assert router.user_group(np.array([40, 0])) == "user:category:books"
    assert router.user_group(np.array([40, 41, 0])) == "user:category:games"
    assert router.user_group(np.array([50, 51, 0])) == "user:category:books"
    assert router.user_group(np.array([50])) == GLOBAL
    assert router.user_group(np.array([], np.int64)) == GLOBAL
    assert router.user_group(np.array([-1, 1000])) == GLOBAL
    assert router.item_group(0).startswith("item:cluster:")
    assert router.item_group(55) == "item:category:games"
    assert router.item_group(None, "garden") == "item:category:garden"
    assert router.item_group(None) == GLOBAL
    cold = replace(router, min_interactions=np.array(10**6))
    assert cold.item_group(0) == "item:category:books"
    assert cold.item_group(50) == GLOBAL
    assert cold.user_group(np.arange(10)) == "user:category:books"


def test_the_same_seed_learns_the_same_groups(router: GroupRouter) -> None:
    users, items = np.repeat(np.arange(20), 3), np.tile(np.arange(6), 10)
    first, second = (
        GroupRouter.fit(users, items, ["x"] * 6, user_clusters=2, item_clusters=2, min_interactions=1) for _ in range(2)
    )
    assert [first.item_group(row) for row in range(6)] == [second.item_group(row) for row in range(6)]


def test_saved_and_loaded_it_routes_the_same(router: GroupRouter, tmp_path: Path) -> None:
    router.save(tmp_path / "router.npz")
    loaded = GroupRouter.load(tmp_path / "router.npz")
    assert [loaded.item_group(row) for row in range(ITEMS)] == [router.item_group(row) for row in range(ITEMS)]
    assert loaded.user_group(np.arange(20, 28)) == router.user_group(np.arange(20, 28))


def test_damaged_files_are_refused(router: GroupRouter, tmp_path: Path) -> None:
    path = tmp_path / "router.npz"
    router.save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    for change, message in (
        ({"format": np.array(9)}, "has router format 9"),
        ({"categories": arrays["categories"][:-1]}, "categories is"),
        ({"user_centroids": arrays["user_centroids"][:, :-1]}, "user_centroids is"),
        ({"interactions": arrays["interactions"].astype("f4")}, "interactions is float32"),
    ):
        with path.open("wb") as file:
            np.savez(file, **(arrays | change))
        with pytest.raises(ValueError, match=message):
            GroupRouter.load(path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"router\.npz: cannot be read as a group router"):
        GroupRouter.load(path)


def test_what_cannot_be_learned_from_is_refused(router: GroupRouter) -> None:
    one = np.array([0])
    for users, items, options, message in (
        (one, one[:0], {}, "one of each per interaction"),
        (one[:0], one[:0], {}, "no interactions"),
        (one, np.array([2]), {}, "items must be 0 to 1"),
        (-one - 1, one, {}, "users at least 0"),
        (one, one, {"dimensions": 0}, "dimensions is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            GroupRouter.fit(users, items, ["a", "b"], **options)
    with pytest.raises(ValueError, match="item row is 60; the router knows 0 to 59"):
        router.item_group(60)
