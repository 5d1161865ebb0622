"""Rules of a shop for one request: which items may be answered, how many alike, and in which order.

    rules = Rules(
        where=attribute("category").one_of("shoes", "bags") & (attribute("price") < 50),
        at_most={"brand": 2},
        boost=[Boost(where=attribute("new").is_(True), add=0.5)],
    )

A value of another type is refused at once, with ValueError; limits are the server's to judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from numbers import Real
from typing import Any, Literal, NoReturn, TypeAlias

from genrec_client.arguments import ItemId, is_flag, require_count, require_flag, require_name, whole_number

Value: TypeAlias = str | bool | int | float | datetime
Bound: TypeAlias = int | float | datetime


@dataclass(frozen=True, slots=True)
class Condition:
    """What holds for an item, or does not. Made with `attribute`; combined with `&`, `|` and `~`.

    form: as the server's JSON has it.
    """

    form: Mapping[str, Any]

    def __and__(self, other: Condition) -> Condition:
        return _joined("all", self, other)

    def __or__(self, other: Condition) -> Condition:
        return _joined("any", self, other)

    def __invert__(self) -> Condition:
        return Condition(self.form.get("not", {"not": self.form}))

    def __bool__(self) -> NoReturn:
        raise TypeError("a condition is neither true nor false here: combine with & | ~ and brackets, not with and, or")


def _joined(kind: str, *conditions: Condition) -> Condition:
    parts: list[Any] = []
    for one in conditions:
        if not isinstance(one, Condition):
            raise ValueError(f"{_shown(one)}; combine conditions, and put each comparison in brackets")
        parts += one.form.get(kind, [one.form])  # flat, because the server limits how deep conditions are nested
    return Condition({kind: parts})


class Attribute:
    """An attribute of the catalogue's items, made with `attribute`. An item without it fulfils no comparison with it.

    Values are str, bool, int, float or datetime; a datetime without a time zone is UTC. `<`, `<=`, `>` and `>=` take
    numbers and datetimes.
    """

    def __init__(self, name: str) -> None:
        require_name("attribute", name)
        self._name = _encodable("attribute", name)

    def is_(self, value: Value) -> Condition:
        """It has this value; a list of texts has it among others."""
        return self._compared("is", _value(f"{self._name}.is_", value))

    def one_of(self, *values: Value) -> Condition:
        """It has one of these values; a list of texts has one at least."""
        if not values:
            raise ValueError(f"{self._name}.one_of: got no value; give one at least")
        return self._compared("in", [_value(f"{self._name}.one_of", value) for value in values])

    def __lt__(self, bound: Bound) -> Condition:
        return self._ranged("<", bound)

    def __le__(self, bound: Bound) -> Condition:
        return self._ranged("<=", bound)

    def __gt__(self, bound: Bound) -> Condition:
        return self._ranged(">", bound)

    def __ge__(self, bound: Bound) -> Condition:
        return self._ranged(">=", bound)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError(f"write attribute({self._name!r}).is_(...), and with ~ before it for the opposite")

    __hash__ = None  # type: ignore[assignment]

    def _ranged(self, operator: str, bound: Bound) -> Condition:
        if isinstance(bound, str) or is_flag(bound):
            raise ValueError(f"{self._name} {operator}: {_shown(bound)}; give a number or a datetime")
        return self._compared(operator, _value(f"{self._name} {operator}", bound))

    def _compared(self, operator: str, value: Any) -> Condition:
        return Condition({"attribute": self._name, operator: value})


def attribute(name: str) -> Attribute:
    """The attribute of this name, to compare it: `attribute("price") < 50`."""
    return Attribute(name)


@dataclass(frozen=True, kw_only=True)
class Boost:
    """What is added to a score for the order: `add` where a condition holds, or `times` the value of an attribute.

    where: a condition. add: log-probability. attribute: name of a number attribute. times: of its value. Give where and
    add, or attribute and times.
    """

    where: Condition | None = None
    add: float | None = None
    attribute: str | None = None
    times: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("where", "add", "attribute", "times") if getattr(self, name) is not None]
        if given not in (["where", "add"], ["attribute", "times"]):
            raise ValueError(f"a Boost has {', '.join(given) or 'nothing'}; give where and add, or attribute and times")
        self._form()

    def _form(self) -> dict[str, Any]:
        if self.where is not None:
            return {"where": _condition("boost: where", self.where), "add": _number("boost: add", self.add)}
        require_name("boost: attribute", self.attribute)
        name = _encodable("boost: attribute", str(self.attribute))
        return {"attribute": name, "times": _number("boost: times", self.times)}


@dataclass(frozen=True, kw_only=True)
class BucketOrder:
    """How items that share a semantic ID are ordered. Give one.

    highest, lowest: name of a number or timestamp attribute. rotate: a seed from 0 to 2147483647; another one for each
    user or day gives every item its turn.
    """

    highest: str | None = None
    lowest: str | None = None
    rotate: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("highest", "lowest", "rotate") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a BucketOrder has {' and '.join(given) or 'none'} of highest, lowest, rotate; give one")
        self._form()

    def _form(self) -> dict[str, Any]:
        for name, value in (("highest", self.highest), ("lowest", self.lowest)):
            if value is not None:
                require_name(f"bucket_order: {name}", value)
                return {name: _encodable(f"bucket_order: {name}", value)}
        seed = whole_number(self.rotate)
        if seed is None or not 0 <= seed < 2**31:
            raise ValueError(f"bucket_order: rotate: {_shown(self.rotate)}; give a whole number, 0 to {2**31 - 1}")
        return {"rotate": seed}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of a request; they hold beside those of the deployment. One may serve many requests.

    where: what holds for every item. allow: ids of the items that may be answered, and no others; [] allows none. deny:
    ids that may not. at_most: names of attributes, and how many items of the answer may have the same value of it.
    boost: additions to the scores, for the order. bucket_order: of items that share a semantic ID; by falling
    popularity if it is not said. explain: whether the answer says what the rules did.
    """

    where: Condition | None = None
    allow: Iterable[ItemId] | None = None
    deny: Iterable[ItemId] = ()
    at_most: Mapping[str, int] = field(default_factory=dict)
    boost: Sequence[Boost] = ()
    bucket_order: BucketOrder | Literal["popularity"] | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        # Read once: what is given may be an iterator, and every request asks for the text.
        object.__setattr__(self, "_text", json.dumps(self._form(), ensure_ascii=False, separators=(",", ":")))

    def to_json(self) -> str:
        """As the server reads it: only what was given."""
        return str(self.__dict__["_text"])

    def _form(self) -> dict[str, Any]:
        form: dict[str, Any] = {}
        if self.where is not None:
            form["where"] = _condition("where", self.where)
        if self.allow is not None:
            form["allow"] = _ids("allow", self.allow)
        if deny := _ids("deny", self.deny):
            form["deny"] = deny
        if caps := _caps(self.at_most):
            form["at_most"] = caps
        if boosts := _boosts(self.boost):
            form["boost"] = boosts
        if isinstance(self.bucket_order, BucketOrder):
            form["bucket_order"] = self.bucket_order._form()
        elif self.bucket_order == "popularity":
            form["bucket_order"] = "popularity"
        elif self.bucket_order is not None:
            raise ValueError(f"bucket_order: {_shown(self.bucket_order)}; give a BucketOrder or 'popularity'")
        require_flag("explain", self.explain)
        if self.explain:
            form["explain"] = True
        return form


def _condition(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Condition):
        raise ValueError(f"{name}: {_shown(value)}; give a condition, such as attribute('price') < 50")
    return dict(value.form)


def _ids(name: str, ids: Any) -> list[str]:
    if isinstance(ids, (str, bytes, bytearray, Mapping)) or not isinstance(ids, Iterable):
        raise ValueError(f"{name}: {_shown(ids)}; give a sequence of item ids")
    return [_id(f"{name}[{place}]", item) for place, item in enumerate(ids)]


def _id(name: str, item: Any) -> str:
    if isinstance(item, bytes):
        try:
            item = item.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: {item!r} is not UTF-8: {error.reason}; rules are text") from None
    elif (number := whole_number(item)) is not None:
        item = str(number)
    elif not isinstance(item, str):
        raise ValueError(f"{name}: {_shown(item)}; an item id is str, bytes or int")
    if not item:
        raise ValueError(f"{name} is empty; an item id has a character at least")
    return _encodable(name, item)


def _caps(at_most: Any) -> list[dict[str, Any]]:
    if not isinstance(at_most, Mapping):
        raise ValueError(f"at_most: {_shown(at_most)}; give items by attribute, such as {{'brand': 2}}")
    caps = []
    for name, items in at_most.items():
        require_name("at_most: attribute", name)
        require_count(f"at_most[{name!r}]", items)
        caps.append({"attribute": _encodable("at_most", name), "items": whole_number(items)})
    return caps


def _boosts(boosts: Any) -> list[dict[str, Any]]:
    if isinstance(boosts, (str, bytes, Mapping)) or not isinstance(boosts, Iterable):
        raise ValueError(f"boost: {_shown(boosts)}; give a sequence of Boost")
    forms = []
    for place, boost in enumerate(boosts):
        if not isinstance(boost, Boost):
            raise ValueError(f"boost[{place}]: {_shown(boost)}; give a Boost")
        forms.append(boost._form())
    return forms


def _value(name: str, value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, str):
        return _encodable(name, value)
    if is_flag(value):
        return bool(value)
    if isinstance(value, datetime):
        if value != value:  # pandas' NaT
            raise ValueError(f"{name}: {value!r} is no time")
        # datetime's own: subclasses write more digits of a second than the server reads.
        return datetime.isoformat(value if value.tzinfo else value.replace(tzinfo=timezone.utc))
    return _number(name, value, "str, bool, int, float or datetime")


def _number(name: str, value: Any, kinds: str = "a number") -> int | float:
    if is_flag(value) or not isinstance(value, Real):
        raise ValueError(f"{name}: {_shown(value)}; give {kinds}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: {_shown(value)} that rules cannot have; give a finite number")
    return number if (whole := whole_number(value)) is None else whole


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {text!r} cannot be encoded as UTF-8: {error.reason}") from None
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} is a {type(value).__name__}"
