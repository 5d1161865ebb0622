"""Extension of griffe: docstrings in prose (`name: meaning.`, shapes as `[B, K]`) as Markdown that reads well."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object

CODE = re.compile(r"(``.*?``|`[^`]*`|^ {4}.*$)", re.S | re.M)  # in backticks, or an indented block
# A sentence that starts a line of its own: after the end of another one, or of a line.
START = r"(?:(?<=[.;)])\s|(?<=\n)|\A)"


class Prose(Extension):
    """Puts each described parameter, and what is raised or returned, on a line of its own, and keeps brackets."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object; leave out what its class's docstring or Python's own describes."""
        if isinstance(obj.parent, Class) and not obj.docstring and _is_plain(obj):
            obj.parent.del_member(obj.name)
        if obj.docstring:
            parts = CODE.split(obj.docstring.value)  # the odd ones are code
            parts[::2] = [self._marked(text, _names(obj)) for text in parts[::2]]
            obj.docstring.value = "".join(parts)

    @staticmethod
    def _marked(text: str, names: list[str]) -> str:
        text = re.sub(r"[][]", r"\\\g<0>", text)  # `[B] [K]` would be a link
        if names:
            one = rf"(?:{'|'.join(map(re.escape, names))})(?:\(\))?"
            text = re.sub(rf"{START}({one}(?:, {one})*): ", r"  \n**\1**: ", text)
        return re.sub(rf"{START}(?=(?:Raises|Returns|Yields) )", r"  \n", text)


def _names(obj: Object) -> list[str]:
    """What the docstring may describe: parameters of a function, fields and `__init__`'s parameters of a class."""
    if isinstance(obj, Function):
        return [parameter.name for parameter in obj.parameters]
    if isinstance(obj, Class):
        return [*obj.attributes, *(parameter.name for parameter in obj.parameters)]
    return []


def _is_plain(obj: Object) -> bool:
    """A field, or a special method such as `__enter__`."""
    return "instance-attribute" in obj.labels or (obj.name.startswith("__") and obj.name != "__init__")
