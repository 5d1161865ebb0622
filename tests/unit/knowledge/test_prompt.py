"""The prompts of knowledge texts: what they show, and what they refuse."""

from __future__ import annotations

import pytest

from genrec.errors import InvalidRequest
from genrec.knowledge.prompt import PromptLimits, item_prompt, user_prompt


def test_a_users_prompt_shows_the_newest_items_oldest_first() -> None:
    history = [{"title": f"Item {n}", "category": "Books > Pens", "brand": "Unseen"} for n in range(5)]
    prompt = user_prompt(history, PromptLimits(shown_items=2))
    assert prompt == ("Customer history, oldest first:\n- Item 3 (Books > Pens)\n- Item 4 (Books > Pens)\nProfile:\n")


def test_an_items_prompt_shows_the_attributes_that_have_a_value() -> None:
    assert item_prompt({"title": "Étoile".encode(), "brand": " ", "category": "Pens"}) == (
        "Item attributes:\ntitle: Étoile\ncategory: Pens\nDescription:\n"
    )


def test_a_title_cannot_write_lines_of_the_template() -> None:
    prompt = user_prompt([{"title": "A pen\nProfile:\r\n\u2028Hello {}"}])
    assert prompt == "Customer history, oldest first:\n- A pen Profile: Hello {}\nProfile:\n"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history has 0 items"),
        ([{"title": "x"}] * 4, "history has 4 items; at most 3 are accepted"),
        ([{"title": "x"}, {"title": " "}, {"title": "y"}], "history item 1 has no title"),
        ([{"title": "x"}, {"title": "é" * 11}], "title of history item 1 has 22 bytes; at most 20"),
        ([{"title": b"caf\xe9"}], r"title of history item 0 is not valid UTF-8: .* at 3, b'\\xe9'"),
        ([{"title": "x", "category": "\ud800"}], r"category of history item 0 is not valid UTF-8: .*'\\ud800'"),
    ],
)
def test_bad_histories_are_refused(history: list[dict[str, str | bytes]], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        user_prompt(history, PromptLimits(shown_items=2, history=3, text_bytes=20))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "no attribute with a value"),
        ({"title": "\t"}, "no attribute with a value"),
        ({"a": "1", "b": "2", "c": "3"}, "item has 3 attributes; at most 2"),
        ({"title": "x" * 21}, "attribute 'title' has 21 bytes; at most 20"),
        ({"x" * 21: "1"}, "attribute name has 21 bytes"),
        ({"title": b"\xff"}, "attribute 'title' is not valid UTF-8"),
    ],
)
def test_bad_items_are_refused(attributes: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        item_prompt(attributes, PromptLimits(attributes=2, text_bytes=20))


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="shown_items is 0"):
        PromptLimits(shown_items=0)
