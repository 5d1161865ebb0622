"""The demo shop: deterministic, sensible, and worth learning from."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest

from genrec_builders.data import Dataset, Sequences, popularity, split_leave_one_out
from genrec_builders.data.demo_shop import make_demo_shop


@pytest.fixture(scope="module")
def shop() -> Dataset:
    return make_demo_shop()


def top_rows(counts: np.ndarray, k: int = 10) -> list[int]:
    return np.argsort(-counts, kind="stable")[:k].tolist()


def markov_hits(train: Sequences, histories: Sequences, targets: np.ndarray, fallback: list[int]) -> float:
    """Hit@10 of: what followed the last item most often in training, filled up with the most popular items."""
    n = int(max(train.rows.max(), histories.rows.max(), targets.max())) + 1
    inner = np.ones(len(train.rows), dtype=bool)
    inner[train.offsets[1:] - 1] = False
    pairs, counts = np.unique(
        train.rows[:-1][inner[:-1]].astype(np.int64) * n + train.rows[1:][inner[:-1]], return_counts=True
    )
    followers: dict[int, list[int]] = defaultdict(list)
    for pair in pairs[np.argsort(-counts, kind="stable")].tolist():
        followers[pair // n].append(pair % n)
    last = histories.rows[histories.offsets[1:] - 1]
    hits = sum(
        target in (followers[row] + fallback)[:10] for row, target in zip(last.tolist(), targets.tolist(), strict=True)
    )
    return hits / len(targets)


def test_same_seed_same_shop() -> None:
    one, two, other = (make_demo_shop(400, 300, seed) for seed in (3, 3, 4))
    assert one.items.item_ids == two.items.item_ids
    assert one.items.attributes == two.items.attributes
    assert one.items.embeddings is not None and two.items.embeddings is not None
    np.testing.assert_array_equal(one.items.embeddings, two.items.embeddings)
    np.testing.assert_array_equal(one.interactions.rows, two.interactions.rows)
    np.testing.assert_array_equal(one.interactions.offsets, two.interactions.offsets)
    assert one.interactions.queries is not None and one.interactions.queries.equals(two.interactions.queries)
    # Another seed draws each part anew.
    assert other.items.embeddings is not None and other.interactions.queries is not None
    assert one.items.attributes["title"] != other.items.attributes["title"]
    assert not np.array_equal(one.items.embeddings, other.items.embeddings)
    assert not np.array_equal(one.interactions.offsets, other.interactions.offsets)
    assert not np.array_equal(one.interactions.rows, other.interactions.rows)
    assert not one.interactions.queries.equals(other.interactions.queries)


def test_every_item_is_named_after_what_it_is(shop: Dataset) -> None:
    columns = (shop.items.attributes[name] for name in ("title", "category", "brand"))
    for title, category, brand in zip(*columns, strict=True):
        if category == "Camping > Tents":
            assert re.fullmatch(rf"{brand} \w+ [1-4]-Person Tent(, \w+)?", title)
        if category == "Electronics > Phone Cases":
            assert re.fullmatch(rf"{brand} \w+ Phone Case for \w+ [56XZ](, \w+)?", title)
        if category == "Games > Board Games":
            assert re.fullmatch(r"The \w+ \w+: (The Board Game|Expansion [1-6])", title)
        if category == "DIY > Project Guides":
            assert re.fullmatch(r"\w+( \(Course \d\))? Workshop Guide, Part [1-7]", title)
        if category == "Books > Manga":
            assert re.fullmatch(r"The \w+ \w+, Vol\. [1-7]", title)


def test_catalogue_knows_nothing_of_the_shoppers() -> None:
    few, many = make_demo_shop(400, 10), make_demo_shop(400, 500)
    assert few.items.attributes == many.items.attributes
    assert few.items.embeddings is not None and many.items.embeddings is not None
    np.testing.assert_array_equal(few.items.embeddings, many.items.embeddings)


@pytest.mark.parametrize(("n_items", "n_users"), [(100, 1), (137, 20), (30_000, 50)])
def test_any_size(n_items: int, n_users: int) -> None:
    dataset = make_demo_shop(n_items, n_users)
    assert len(dataset.items) == n_items and len(dataset.interactions) == n_users
    for column in (dataset.items.item_ids, dataset.items.attributes["title"]):
        assert len(set(column)) == n_items


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_items is 99"):
        make_demo_shop(99, 5)
    with pytest.raises(ValueError, match="n_users 0"):
        make_demo_shop(100, 0)


def test_catalogue(shop: Dataset) -> None:
    items = shop.items
    assert items.sids is None and items.levels is None
    assert set(items.attributes) == {"title", "category", "brand"}
    assert len(set(items.attributes["title"])) == len(set(items.item_ids)) == 5000
    assert all(title == " ".join(title.split()) and len(title) < 80 for title in items.attributes["title"])
    assert len({category.split(" > ")[0] for category in items.attributes["category"]}) == 12
    assert items.embeddings is not None
    assert items.embeddings.dtype == np.float32 and items.embeddings.shape == (5000, 64)
    np.testing.assert_allclose(np.linalg.norm(items.embeddings, axis=1), 1.0, atol=1e-5)


def test_embeddings_group_what_belongs_together(shop: Dataset) -> None:
    assert shop.items.embeddings is not None
    rows = np.random.default_rng(0).choice(5000, 400, replace=False)
    similar = shop.items.embeddings[rows] @ shop.items.embeddings.T
    similar[np.arange(400), rows] = -np.inf
    category = np.array(shop.items.attributes["category"])
    assert (category[similar.argmax(axis=1)] == category[rows]).mean() > 0.9


def test_histories(shop: Dataset) -> None:
    lengths = np.diff(shop.interactions.offsets)
    assert lengths.min() >= 5 and lengths.max() <= 60
    assert 12 <= np.median(lengths) <= 15
    users = np.repeat(np.arange(len(lengths)), lengths)
    distinct = len(np.unique(users * 5000 + shop.interactions.rows))
    assert 0.0 < 1 - distinct / len(users) < 0.03  # an item is repeated, but rarely


def test_popularity_has_a_long_tail(shop: Dataset) -> None:
    counts = np.sort(popularity(shop.interactions, 5000))[::-1]
    total = counts.sum()
    assert 0.05 < counts[:50].sum() / total < 0.25
    assert 0.04 < counts[2500:].sum() / total < 0.25
    assert (counts == 0).mean() < 0.05


def test_shoppers_have_tastes(shop: Dataset) -> None:
    department = np.unique([c.split(" > ")[0] for c in shop.items.attributes["category"]], return_inverse=True)[1]
    bought, lengths = department[shop.interactions.rows], np.diff(shop.interactions.offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    table = np.bincount(users * 12 + bought, minlength=len(lengths) * 12).reshape(-1, 12)
    share = (table.max(axis=1) / lengths).mean()
    assert share > 2 * np.bincount(bought).max() / len(bought)


def test_sequels_are_bought_in_order(shop: Dataset) -> None:
    volume_of: dict[int, tuple[str, int]] = {}
    for row, title in enumerate(shop.items.attributes["title"]):
        match = re.fullmatch(r"(.+)(?:,|Guide,) (?:Book|Case|Volume|Vol\.|Part) (\d+)", title)
        if match:
            volume_of[row] = match[1], int(match[2])
    assert len(volume_of) > 500
    forward = backward = begun = 0
    for start, end in zip(shop.interactions.offsets[:-1].tolist(), shop.interactions.offsets[1:].tolist(), strict=True):
        reached: dict[str, int] = {}
        for row in shop.interactions.rows[start:end].tolist():
            if row in volume_of:
                name, volume = volume_of[row]
                if name in reached:
                    forward += volume == reached[name] + 1
                    backward += volume <= reached[name]
                else:
                    begun += volume == 1
                reached[name] = volume
    assert forward > 5000
    assert backward < 0.1 * forward
    assert begun > 5000


def test_accessories_follow_what_they_belong_to(shop: Dataset) -> None:
    titles, categories, brands = (shop.items.attributes[name] for name in ("title", "category", "brand"))
    rows, last = shop.interactions.rows, shop.interactions.offsets[1:] - 1
    inner = np.delete(np.arange(len(rows)), last)
    pairs = list(zip(rows[inner].tolist(), rows[inner + 1].tolist(), strict=True))
    after_tents = [(tent, row) for tent, row in pairs if categories[tent] == "Camping > Tents"]
    footprints = [(tent, row) for tent, row in after_tents if categories[row] == "Camping > Footprints"]
    usual = np.mean([categories[row] == "Camping > Footprints" for row in rows.tolist()])
    assert len(footprints) / len(after_tents) > 10 * usual
    fits = [brands[tent] == brands[row] and size(titles[tent]) == size(titles[row]) for tent, row in footprints]
    assert np.mean(fits) > 0.5


def size(title: str) -> str:
    return re.findall(r"\d-Person", title)[0]


def test_half_of_the_purchases_follow_a_query(shop: Dataset) -> None:
    assert shop.interactions.queries is not None
    queries = shop.interactions.queries.to_pylist()
    asked = [query for query in queries if query]
    assert 0.45 < len(asked) / len(queries) < 0.55
    assert all(query == " ".join(query.split()) and len(query) < 60 for query in asked)
    assert len(set(asked)) > 5000
    assert 0.05 < sum(query != query.lower() for query in asked) / len(asked) < 0.25
    assert {"tents", "tent"} <= set(asked)


def test_a_query_narrows_down_but_rarely_to_one_item(shop: Dataset) -> None:
    assert shop.interactions.queries is not None
    columns = [shop.items.attributes[name] for name in ("title", "category", "brand")]
    rows_of: dict[str, set[int]] = defaultdict(set)
    for row, texts in enumerate(zip(*columns, strict=True)):
        for word in re.split(r"[\s,:>]+", " ".join(texts).lower()):
            rows_of[word].add(row)
            rows_of[stem(word)].add(row)
    pairs = zip(shop.interactions.queries.to_pylist(), shop.interactions.rows.tolist(), strict=True)
    found = [
        (set.intersection(*(rows_of.get(word, set()) | rows_of.get(stem(word), set()) for word in words)), row)
        for words, row in ((query.lower().split(), row) for query, row in list(pairs)[:20_000])
        if words
    ]
    sizes = np.array([len(rows) for rows, _ in found])
    assert np.mean([row in rows for rows, row in found]) > 0.9, "typing errors are few"
    assert 5 < np.median(sizes) < 100
    assert (sizes == 1).mean() < 0.1
    assert (sizes > 0.1 * len(shop.items)).mean() < 0.1


def stem(word: str) -> str:
    for ending, singular in (("knives", "knife"), ("mice", "mouse"), ("ies", "y"), ("ches", "ch"), ("ses", "s")):
        if word.endswith(ending):
            return word.removesuffix(ending) + singular
    return word.removesuffix("s")


def test_structure_can_be_learnt(shop: Dataset) -> None:
    """Without any model: counts of what follows what beat popularity several times over, on items never trained on."""
    split = split_leave_one_out(shop.interactions)
    popular = top_rows(popularity(split, len(shop.items)))
    by_popularity = np.isin(split.test.targets, popular).mean()
    by_markov = markov_hits(split.train, split.test.histories, split.test.targets, popular)
    assert by_markov >= 0.15
    assert by_markov >= 5 * by_popularity
    assert by_popularity > 0.005  # so that the factor means something
