"""The form of a shop's rules: JSON that says which items may be answered, and in which order.

{"where": {"all": [{"attribute": "category", "in": ["shoes"]}, {"attribute": "price", "<": 50}]},
 "at_most": [{"attribute": "brand", "items": 2}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from genrec.errors import InvalidRequest

MAX_BYTES = 65_536
MAX_CONDITIONS, MAX_DEPTH, MAX_IDS = 256, 16, 2_000
MAX_BOOST = 100.0

# Strict: "5" is no number, 1 is no truth value.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(strict=True, max_length=256)]
Value = Union[Annotated[bool, Field(strict=True)], Number, Text]
Bound = Union[Number, Text]
Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
ItemId = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Form):
    """What holds for an item, or does not.

    Either one of `all`, `any` and `not`, or an attribute with operators that hold together: `is`, `in` and `not_in` for
    every kind, `<`, `<=`, `>` and `>=` for numbers and timestamps. Of a list of texts, `in` means one of them at least.
    An attribute that an item does not have fulfils no operator but `not_in`.
    """

    all: Annotated[tuple[Condition, ...], Field(min_length=1)] | None = None
    any: Annotated[tuple[Condition, ...], Field(min_length=1)] | None = None
    not_: Annotated[Condition | None, Field(alias="not")] = None
    attribute: Name | None = None
    is_: Annotated[Value | None, Field(alias="is")] = None
    in_: Annotated[tuple[Value, ...] | None, Field(alias="in", min_length=1, max_length=MAX_IDS)] = None
    not_in: Annotated[tuple[Value, ...] | None, Field(min_length=1, max_length=MAX_IDS)] = None
    below: Annotated[Bound | None, Field(alias="<")] = None
    up_to: Annotated[Bound | None, Field(alias="<=")] = None
    above: Annotated[Bound | None, Field(alias=">")] = None
    from_: Annotated[Bound | None, Field(alias=">=")] = None

    @model_validator(mode="after")
    def _whole(self) -> Condition:
        forms = [name for name in ("all", "any", "not", "attribute") if getattr(self, _field(name)) is not None]
        if len(forms) != 1:
            raise ValueError(f"has {' and '.join(forms) or 'none'} of all, any, not and attribute; give exactly one")
        operators = [name for name in OPERATORS if getattr(self, _field(name)) is not None]
        if forms == ["attribute"] and not operators:
            raise ValueError(f"says nothing of attribute {self.attribute!r}; give one of {', '.join(OPERATORS)}")
        if forms != ["attribute"] and operators:
            raise ValueError(f"has {operators[0]!r} beside {forms[0]!r}; operators stand beside an attribute")
        return self

    def children(self) -> Iterator[tuple[str, Condition]]:
        """The conditions that it is made of, and where they stand in it."""
        for name in ("all", "any"):
            for number, child in enumerate(getattr(self, name) or ()):
                yield f"{name}[{number}]", child
        if self.not_ is not None:
            yield "not", self.not_

    def operators(self) -> Iterator[tuple[str, Any]]:
        """The operators of its attribute, and their values."""
        for name in OPERATORS:
            if (value := getattr(self, _field(name))) is not None:
                yield name, value


class Cap(_Form):
    """At most so many items of the answer that have the same value of an attribute."""

    attribute: Name
    items: Annotated[int, Field(strict=True, ge=1)]


class Boost(_Form):
    """What is added to a score: `add` where a condition holds, or `times` the value of a number attribute."""

    where: Condition | None = None
    add: Annotated[Number | None, Field(ge=-MAX_BOOST, le=MAX_BOOST)] = None
    attribute: Name | None = None
    times: Number | None = None

    @model_validator(mode="after")
    def _whole(self) -> Boost:
        given = {name for name in ("where", "add", "attribute", "times") if getattr(self, name) is not None}
        if given not in ({"where", "add"}, {"attribute", "times"}):
            raise ValueError(f"has {', '.join(sorted(given)) or 'nothing'}; give where and add, or attribute and times")
        return self


class BucketOrder(_Form):
    """How items that share a semantic ID are ordered: by an attribute, or in turn by a seed."""

    highest: Name | None = None
    lowest: Name | None = None
    rotate: Annotated[int | None, Field(strict=True, ge=0, lt=2**31)] = None

    @model_validator(mode="after")
    def _whole(self) -> BucketOrder:
        given = [name for name in ("highest", "lowest", "rotate") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of highest, lowest and rotate; give exactly one")
        return self


class Rules(_Form):
    """The rules of a request, or of a deployment.

    allow: ids of the items that may be answered, and no others. deny: ids that may not. where: what holds for every
    item. at_most: caps, for diversity. boost: additions to scores. bucket_order: of items with one semantic ID; by
    falling popularity if it is not said. explain: whether the answer says what the rules did.
    """

    allow: Annotated[tuple[ItemId, ...] | None, Field(max_length=MAX_IDS)] = None
    deny: Annotated[tuple[ItemId, ...], Field(max_length=MAX_IDS)] = ()
    where: Condition | None = None
    at_most: Annotated[tuple[Cap, ...], Field(max_length=8)] = ()
    boost: Annotated[tuple[Boost, ...], Field(max_length=16)] = ()
    bucket_order: BucketOrder | Literal["popularity"] | None = None
    explain: Annotated[bool, Field(strict=True)] = False

    def canonical(self) -> str:
        """The same for rules that mean the same, up to the order of conditions: compact JSON that `parse` reads."""
        ordered = self.model_copy(
            update={
                "allow": None if self.allow is None else tuple(sorted(set(self.allow))),
                "deny": tuple(sorted(set(self.deny))),
            }
        )
        return ordered.model_dump_json(by_alias=True, exclude_defaults=True)


OPERATORS = ("is", "in", "not_in", "<", "<=", ">", ">=")
_FIELDS = {"not": "not_", "is": "is_", "in": "in_", "<": "below", "<=": "up_to", ">": "above", ">=": "from_"}


def _field(name: str) -> str:
    return _FIELDS.get(name, name)


def parse(text: bytes | str, what: str = "rules") -> Rules:
    """The rules that JSON says. what: how messages call it.

    Raises InvalidRequest that names the position, the value and what to do.
    """
    size = len(text.encode() if isinstance(text, str) else text)
    if size > MAX_BYTES:
        raise InvalidRequest(f"{what}: has {size} bytes; at most {MAX_BYTES} are accepted, send fewer ids or values")
    try:
        rules = Rules.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequest(f"{what}: {_first(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what}: is not readable as JSON: {' '.join(str(error).split())[:200]}") from None
    _require_size(rules, what)
    return rules


def schema() -> dict[str, Any]:
    """The JSON schema of the form."""
    return Rules.model_json_schema(by_alias=True)


def conditions(rules: Rules) -> Iterator[tuple[str, Condition]]:
    """Every condition of the rules, and where it stands; those that others are made of behind them."""
    pending = [("where", rules.where)] if rules.where is not None else []
    pending += [(f"boost[{at}].where", one.where) for at, one in enumerate(rules.boost) if one.where is not None]
    while pending:
        place, condition = pending.pop()
        yield place, condition
        pending += [(f"{place}.{name}", child) for name, child in condition.children()]


def _require_size(rules: Rules, what: str) -> None:
    count = 0
    for place, _ in conditions(rules):
        count += 1
        if len(re.findall(r"\.(?:all|any)\[|\.not\b", place)) > MAX_DEPTH:
            raise InvalidRequest(f"{what}: {place}: is nested deeper than {MAX_DEPTH}; join conditions of one kind")
    if count > MAX_CONDITIONS:
        raise InvalidRequest(
            f"{what}: has {count} conditions; at most {MAX_CONDITIONS} are accepted, use `in` with several values"
        )


def _first(error: ValidationError) -> str:
    """What is wrong first, with its position and value."""
    found = error.errors(include_url=False)
    # A name that is unknown explains one that is missing; of the forms that a value may have, the closest one counts.
    one = max(found, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"])))
    if one["type"] == "json_invalid":
        return f"is not readable as JSON: {one['ctx']['error']}"
    place, names = "", Rules.model_fields | Condition.model_fields
    for step in one["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif step in names or step in OPERATORS or step in _EXTRA or one["type"] == "extra_forbidden":
            place += f".{step}" if place else step
    if one["type"] == "extra_forbidden":
        return f"{place}: is unknown; known here are {', '.join(_KNOWN[_room(one['loc'])])}"
    kinds = sorted(
        {_EXPECTED[each["type"]] for each in found if each["type"] in _EXPECTED and each["loc"][:1] == one["loc"][:1]}
    )
    message = one["msg"].removeprefix("Value error, ").replace("Tuple", "a list").replace("String", "text")
    if one["type"] in _EXPECTED:
        message = f"is no {' and no '.join(kinds)}"
    value = one.get("input")
    shown = "" if one["type"] == "value_error" else f", got {_short(value)}"
    return f"{place or 'the whole'}: {message}{shown}"


_EXTRA = {"items", "attribute", "add", "times", "where", "highest", "lowest", "rotate"}
_EXPECTED = {
    "string_type": "text",
    "float_type": "number",
    "int_type": "whole number",
    "bool_type": "truth value",
    "model_type": "object",
    "model_attributes_type": "object",
    "tuple_type": "list",
    "finite_number": "finite number",
}
_KNOWN = {
    "rules": [*Rules.model_fields],
    "condition": ["all", "any", "not", "attribute", *OPERATORS],
    "at_most": [*Cap.model_fields],
    "boost": [*Boost.model_fields],
    "bucket_order": [*BucketOrder.model_fields],
}


def _room(loc: tuple[int | str, ...]) -> str:
    """Which form an unknown name stands in."""
    if "where" in loc[:-1]:
        return "condition"
    return str(loc[0]) if len(loc) > 1 and loc[0] in _KNOWN else "rules"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
