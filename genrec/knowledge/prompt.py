"""The prompts that ask for a knowledge text: a user's history, or an item's attributes, as text.

Training data, offline generation and serving all use these templates: a model only continues well what it was trained
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrec.errors import InvalidRequest

_USER = "Customer history, oldest first:\n{}\nProfile:\n"
_ITEM = "Item attributes:\n{}\nDescription:\n"


@dataclass(frozen=True)
class PromptLimits:
    """What a prompt may hold.

    shown_items: items of a history that the prompt shows, the newest ones. history: items that a request may send;
    more are refused. attributes: of one item. text_bytes: UTF-8 bytes of one title, attribute name or value.
    """

    shown_items: int = 8
    history: int = 1024
    attributes: int = 16
    text_bytes: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


DEFAULT_LIMITS = PromptLimits()


def user_prompt(history: Sequence[Mapping[str, str | bytes]], limits: PromptLimits = DEFAULT_LIMITS) -> str:
    """The prompt of a user.

    history: the items' attributes, oldest first; `title` is needed, `category` is shown if there is one, others are
    left out. Only the newest `limits.shown_items` are read.

    Raises InvalidRequest for an empty or too long history, an item without a title, text that is not UTF-8 or too long.
    """
    if not history:
        raise InvalidRequest("history has 0 items; a user's text needs at least 1, send what the user took")
    if len(history) > limits.history:
        raise InvalidRequest(f"history has {len(history)} items; at most {limits.history} are accepted, send fewer")
    shown = history[-limits.shown_items :]
    first = len(history) - len(shown)
    return _USER.format("\n".join(_line(f"history item {first + at}", item, limits) for at, item in enumerate(shown)))


def item_prompt(attributes: Mapping[str, str | bytes], limits: PromptLimits = DEFAULT_LIMITS) -> str:
    """The prompt of an item: its attributes in the order given, those without a value left out.

    Raises InvalidRequest for no attribute with a value, too many, or text that is not UTF-8 or too long.
    """
    if len(attributes) > limits.attributes:
        raise InvalidRequest(f"item has {len(attributes)} attributes; at most {limits.attributes} are accepted")
    lines = []
    for name, value in attributes.items():
        label = _text("attribute name", name, limits)
        if text := _text(f"attribute {label!r}", value, limits):
            lines.append(f"{label}: {text}")
    if not lines:
        raise InvalidRequest("item has no attribute with a value; send at least one, such as its title")
    return _ITEM.format("\n".join(lines))


def _line(name: str, item: Mapping[str, str | bytes], limits: PromptLimits) -> str:
    title = _text(f"title of {name}", item.get("title", ""), limits)
    if not title:
        raise InvalidRequest(f"{name} has no title; send one for every item, or leave the item out")
    category = _text(f"category of {name}", item.get("category", ""), limits)
    return f"- {title} ({category})" if category else f"- {title}"


def _text(name: str, value: str | bytes, limits: PromptLimits) -> str:
    """`value` as one line: a line break in a title must not pass for the template's own."""
    try:
        data = value if isinstance(value, bytes) else value.encode()
        if len(data) > limits.text_bytes:
            raise InvalidRequest(f"{name} has {len(data)} bytes; at most {limits.text_bytes} are accepted, shorten it")
        return " ".join(data.decode().split())
    except UnicodeError as error:  # text with lone surrogates cannot be encoded, bytes may not decode
        assert isinstance(error, (UnicodeDecodeError, UnicodeEncodeError))
        bad = error.object[error.start : error.end]
        raise InvalidRequest(
            f"{name} is not valid UTF-8: {error.reason} at {error.start}, {bad!r}; encode the text as UTF-8"
        ) from None
