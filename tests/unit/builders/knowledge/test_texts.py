"""The demo shop's knowledge texts: what they depend on, and how much they vary."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from genrec_builders.data import Dataset, Interactions
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.knowledge.facts import followers, item_facts, user_facts
from genrec_builders.knowledge.texts import KnowledgeText, item_texts, split_texts, user_texts
from genrec_builders.knowledge.wording import ITEM, USER, WORDS
from perf.knowledge.repetition import repetition


@pytest.fixture(scope="module")
def shop() -> Dataset:
    return make_demo_shop(600, 800, 3)


@pytest.fixture(scope="module")
def users(shop: Dataset) -> list[KnowledgeText]:
    return user_texts(shop)


@pytest.fixture(scope="module")
def items(shop: Dataset) -> list[KnowledgeText]:
    return item_texts(shop)


def of_one_user(shop: Dataset, rows: list[int]) -> KnowledgeText:
    """The text of a user who took `rows`, and then two items that the text may not know."""
    taken = np.array([*rows, 0, 0], np.int32)
    return user_texts(Dataset(shop.items, Interactions(["u"], np.array([0, len(taken)]), taken)))[0]


def test_same_seed_same_texts(shop: Dataset, users: list[KnowledgeText], items: list[KnowledgeText]) -> None:
    assert user_texts(shop) == users
    assert item_texts(shop) == items
    other = user_texts(shop, seed=1)
    assert [text.prompt for text in other] == [text.prompt for text in users]
    assert np.mean([one.text != two.text for one, two in zip(other, users, strict=True)]) > 0.99


def test_texts_are_filled_in_and_of_sensible_length(users: list[KnowledgeText], items: list[KnowledgeText]) -> None:
    for text in users + items:
        assert not re.search(r"[\[\]{}|]|  | [.,]|\ba [aeio]", text.text), text.text
        assert text.text[-1] == "." and text.text[0].isupper()
        assert 20 <= len(text.text.split()) <= 140


def test_templates_name_facts_and_words_that_exist(shop: Dataset) -> None:
    """A template with another name in it would never be used."""
    columns = shop.items.attributes
    items = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    after = followers(shop)
    users = [user_facts(items[start : start + 8], after).known for start in range(0, len(items), 8)]
    for sentences, known in ((USER, users), (ITEM, [item_facts(item, after).known for item in items])):
        names = {name for facts in known for name in facts} | WORDS.keys()
        names |= {"activity", "virtue", "virtue2", "place", "tier", "worth"}  # chosen by the department and tier
        templates = [template for sentence in sentences for template in sentence.templates]
        assert set(re.findall(r"\{(.*?)\}", " ".join(templates))) <= names
        for template in templates:
            assert re.fullmatch(r"([^\[\]]|\[[^\[\]]*\])+\.", template), template


def test_every_text_is_its_own(users: list[KnowledgeText], items: list[KnowledgeText]) -> None:
    for texts in (users, items):
        assert len({text.text for text in texts}) > 0.99 * len(texts)
        assert len({" ".join(text.text.split()[:4]) for text in texts}) > 50


def test_user_texts_tell_what_the_prompt_shows(shop: Dataset, users: list[KnowledgeText]) -> None:
    brands = set(shop.items.attributes["brand"])
    told = 0
    for text in users:
        assert text.group in text.text and text.group in text.prompt
        for brand in brands:
            if re.search(rf"\b{re.escape(brand)}\b", text.text):
                assert brand in text.prompt
                told += 1
    assert told > 0.3 * len(users)


def test_user_texts_follow_the_history(shop: Dataset) -> None:
    titles, categories = shop.items.attributes["title"], shop.items.attributes["category"]
    garden = [row for row, category in enumerate(categories) if category.startswith("Garden")]
    coffee = [row for row, category in enumerate(categories) if category == "Coffee > Coffee Beans"]
    series = re.sub(r" \d+$", "", next(title for title in titles if re.search(r", Book 1$", title)))
    volumes = [titles.index(f"{series} {number}") for number in (1, 2)]
    assert "Garden" in of_one_user(shop, garden[:8]).text
    moved = of_one_user(shop, garden[:6] + coffee[:2])
    assert moved.group == "Garden"
    same_words = {text.text for text in (of_one_user(shop, garden[:8]), moved, of_one_user(shop, garden[8:16]))}
    assert len(same_words) == 3
    # The last two items and what lies before the newest eight change nothing.
    assert of_one_user(shop, coffee[:5] + garden[:8]) == of_one_user(shop, volumes + garden[:8])
    reader = of_one_user(shop, [*garden[:3], *volumes])
    shown = {text.text for text in [reader, *(of_one_user(shop, [*garden[:n], *volumes]) for n in (1, 2, 4, 5))]}
    assert any(series.partition(",")[0] in text and "Book 3" in text for text in shown)


def test_item_texts_follow_the_attributes(shop: Dataset, items: list[KnowledgeText]) -> None:
    for text, title, category in zip(
        items, shop.items.attributes["title"], shop.items.attributes["category"], strict=True
    ):
        assert title in text.text and title in text.prompt
        assert category.startswith(text.group)


def test_similar_entities_are_written_about_alike(users: list[KnowledgeText]) -> None:
    """A text's 4-grams are found more often in texts of its own group than of as many others."""
    words: dict[str, int] = {}
    tokens = [np.array([words.setdefault(word, len(words)) for word in text.text.split()]) for text in users]
    groups = np.array([text.group for text in users])
    half = len(users) // 2
    own = repetition(tokens[:half], groups[:half], tokens[half:], groups[half:])
    mixed = repetition(tokens[:half], np.random.default_rng(0).permutation(groups[:half]), tokens[half:], groups[half:])
    assert own.group > mixed.group + 0.05


def test_the_harder_set_has_about_twice_the_novelty() -> None:
    shop = make_demo_shop(1000, 2000, 3)
    novelty = []
    for harder in (False, True):
        words: dict[str, int] = {}
        shares = []
        for texts in (user_texts(shop, harder=harder), item_texts(shop, harder=harder)):
            parts = split_texts(texts)
            pool, held_out = (
                [np.array([words.setdefault(word, len(words)) for word in text.text.split()]) for text in part]
                for part in parts
            )
            groups = [np.array([text.group for text in part]) for part in parts]
            shares.append(repetition(pool, groups[0], held_out, groups[1]).neither)
        novelty.append(np.mean(shares))
    # Twice for the demo shop of 12,000 users; among few texts much is new in either set.
    assert 1.4 < novelty[1] / novelty[0] < 2.6


def test_the_same_entities_are_held_out_of_every_set(shop: Dataset, users: list[KnowledgeText]) -> None:
    train, held_out = split_texts(users)
    assert len(train) + len(held_out) == len(users) and 0.05 < len(held_out) / len(users) < 0.15
    other = split_texts(user_texts(shop, seed=5))[1]
    assert [text.entity for text in other] == [text.entity for text in held_out]


def test_other_shops_are_refused(shop: Dataset) -> None:
    attributes = shop.items.attributes
    toys = {**attributes, "category": ["Toys > Dolls", *attributes["category"][1:]]}
    with pytest.raises(ValueError, match="'Toys' is no department"):
        item_texts(replace(shop, items=replace(shop.items, attributes=toys)))
    with pytest.raises(ValueError, match="no brand, category"):
        user_texts(replace(shop, items=replace(shop.items, attributes={"title": attributes["title"]})))
