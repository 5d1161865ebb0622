"""Knowledge texts of the demo shop: what a language model could write about its users and items.

A text is made of facts and wording. The facts are those of the entity: a user's departments, brands, price tier, series
and shift of interest, all as its prompt shows them; an item's type, brand, line and series; and what shoppers take next
after a type, counted in the training part of the interactions. The wording comes from the templates in `wording.yaml`.
Often the choice among their alternatives is the habit of the entity's department, tier, or the like, so that similar
entities are written about alike and a model can learn it; otherwise it is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genrec.knowledge.prompt import DEFAULT_LIMITS, PromptLimits, item_prompt, user_prompt
from genrec_builders.data import Dataset, split_leave_one_out
from genrec_builders.knowledge.facts import followers, item_facts, user_facts
from genrec_builders.knowledge.hashing import text_number
from genrec_builders.knowledge.wording import DEPARTMENTS, ITEM, USER, write


@dataclass(frozen=True)
class KnowledgeText:
    """A text about one entity. group: its department. prompt: what a model is given to write `text`."""

    entity: str
    group: str
    prompt: str
    text: str


def user_texts(
    dataset: Dataset, seed: int = 0, *, harder: bool = False, limits: PromptLimits = DEFAULT_LIMITS
) -> list[KnowledgeText]:
    """A summary of every user, of the newest items that its prompt shows.

    Only the training part of the interactions is seen: the last two items of a user stay unknown, so that a text can be
    a feature in predicting them. The group is the department that most of the shown items have. A user's text depends
    on the seed, the user and the dataset alone. Raises ValueError for items of other shops' departments.
    """
    attributes, after = _rows(dataset), followers(dataset)
    histories = split_leave_one_out(dataset.interactions).train
    written = []
    for number, user in enumerate(histories.users.tolist()):
        entity = dataset.interactions.user_ids[user]
        history = [attributes[row] for row in histories[number].tolist()]
        facts = user_facts(history[-limits.shown_items :], after)
        text = write(USER, facts, f"{seed}/user/{entity}", harder)
        written.append(KnowledgeText(entity, facts.known["department"], user_prompt(history, limits), text))
    return written


def item_texts(
    dataset: Dataset, seed: int = 0, *, harder: bool = False, limits: PromptLimits = DEFAULT_LIMITS
) -> list[KnowledgeText]:
    """A description of every item. Raises ValueError for items of other shops' departments."""
    after = followers(dataset)
    written = []
    for entity, item in zip(dataset.items.item_ids, _rows(dataset), strict=True):
        facts = item_facts(item, after)
        text = write(ITEM, facts, f"{seed}/item/{entity}", harder)
        written.append(KnowledgeText(entity, facts.known["department"], item_prompt(item, limits), text))
    return written


def split_texts(texts: Sequence[KnowledgeText]) -> tuple[list[KnowledgeText], list[KnowledgeText]]:
    """(to train on, held out): one entity in ten is held out, the same one in every set and for every seed."""
    parts: tuple[list[KnowledgeText], list[KnowledgeText]] = ([], [])
    for text in texts:
        parts[text_number(f"held out/{text.entity}") % 10 == 0].append(text)
    return parts


def _rows(dataset: Dataset) -> list[dict[str, str]]:
    """The attributes of every item."""
    columns = dataset.items.attributes
    missing = {"title", "category", "brand"} - columns.keys()
    if missing:
        raise ValueError(f"the items have no {', '.join(sorted(missing))}; the texts are for the demo shop's items")
    unknown = {category.partition(" > ")[0] for category in columns["category"]} - DEPARTMENTS.keys()
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no department of the demo shop; the texts are for its items")
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
