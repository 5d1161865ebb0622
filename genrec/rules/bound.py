"""Rules that are fitted to the attributes of a catalogue: what a step evaluates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Union

from genrec.errors import InvalidRequest
from genrec.rules.form import BucketOrder, Condition, Rules

RANGES = ("<", "<=", ">", ">=")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_VALUE = {"string": "text", "strings": "text", "number": "a number", "boolean": "true or false", "timestamp": "a time"}


@dataclass(frozen=True)
class Among:
    """An attribute has one of some values: bytes for texts, bool, float, or int microseconds since 1970."""

    attribute: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Between:
    """A number or a timestamp lies in a range; an end belongs to it unless it is open."""

    attribute: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False


@dataclass(frozen=True)
class Every:
    """All of some tests hold."""

    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Some:
    """One of some tests holds."""

    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Inverse:
    """A test does not hold."""

    test: Test


Test = Union[Among, Between, Every, Some, Inverse]


@dataclass(frozen=True)
class Filter:
    """Which items may be answered, as far as that does not depend on the request's user.

    allow: ids, or None for all. where: None for all. It is a key: equal filters hold for the same items.
    """

    allow: frozenset[bytes] | None
    where: Test | None


@dataclass(frozen=True)
class Addition:
    """What is added to scores: `add` where `where` holds, or `times` the value of a number attribute."""

    where: Test | None
    add: float
    attribute: str
    times: float


@dataclass(frozen=True)
class BoundRules:
    """The rules of a deployment or of a request. caps: attributes, and items of each value at most."""

    filter: Filter
    deny: frozenset[bytes]
    caps: tuple[tuple[str, int], ...]
    additions: tuple[Addition, ...]
    order: BucketOrder | None
    explain: bool


def bind(rules: Rules, kinds: Mapping[str, str], what: str = "rules") -> BoundRules:
    """Fit rules to a catalogue's attributes. kinds: by name. what: how messages call the rules.

    Raises InvalidRequest for an attribute that the catalogue lacks, and for operators and values that do not suit it.
    """
    binding = _Binding(kinds, what)
    order = rules.bucket_order if isinstance(rules.bucket_order, BucketOrder) else None
    if order is not None and (name := order.highest or order.lowest) is not None:
        place = "bucket_order.highest" if order.highest else "bucket_order.lowest"
        binding.kind(place, name, "number", "timestamp")
    for at, cap in enumerate(rules.at_most):
        binding.kind(f"at_most[{at}].attribute", cap.attribute, "string", "number", "boolean", "timestamp")
    additions = []
    for at, boost in enumerate(rules.boost):
        if boost.where is not None:
            where = binding.test(f"boost[{at}].where", boost.where)
            additions.append(Addition(where, float(boost.add or 0), "", 0.0))
        else:
            assert boost.attribute is not None and boost.times is not None
            binding.kind(f"boost[{at}].attribute", boost.attribute, "number")
            additions.append(Addition(None, 0.0, boost.attribute, boost.times))
    return BoundRules(
        filter=Filter(
            None if rules.allow is None else frozenset(item_id.encode() for item_id in rules.allow),
            None if rules.where is None else binding.test("where", rules.where),
        ),
        deny=frozenset(item_id.encode() for item_id in rules.deny),
        caps=tuple((cap.attribute, cap.items) for cap in rules.at_most),
        additions=tuple(additions),
        order=order,
        explain=rules.explain,
    )


@dataclass(frozen=True)
class _Binding:
    kinds: Mapping[str, str]
    what: str

    def refuse(self, place: str, problem: str) -> InvalidRequest:
        return InvalidRequest(f"{self.what}: {place}: {problem}")

    def kind(self, place: str, name: str, *suitable: str) -> str:
        """The kind of an attribute, which has to be a suitable one."""
        kind = self.kinds.get(name)
        if kind is None:
            known = ", ".join(sorted(self.kinds)) or "none: it was made without attributes"
            raise self.refuse(place, f"attribute {name!r} is unknown; the catalogue's attributes are {known}")
        if suitable and kind not in suitable:
            raise self.refuse(
                place, f"attribute {name!r} is of kind {kind}; this takes one of kind {' or '.join(suitable)}"
            )
        return kind

    def test(self, place: str, condition: Condition) -> Test:
        children = tuple(self.test(f"{place}.{at}", child) for at, child in condition.children())
        if condition.all is not None:
            return Every(children)
        if condition.any is not None:
            return Some(children)
        if condition.not_ is not None:
            return Inverse(children[0])
        assert condition.attribute is not None
        name = condition.attribute
        kind = self.kind(f"{place}.attribute", name)
        tests: list[Test] = []
        ends: dict[str, float] = {}
        for operator, value in condition.operators():
            at = f"{place}.{operator}"
            if operator in RANGES:
                self.kind(at, name, "number", "timestamp")
                ends[operator] = self.value(at, kind, value)
                continue
            values = (value,) if operator == "is" else value
            places = [at] if operator == "is" else [f"{at}[{number}]" for number in range(len(values))]
            read = {self.value(where, kind, one) for where, one in zip(places, values, strict=True)}
            among = Among(name, tuple(sorted(read)))
            tests.append(Inverse(among) if operator == "not_in" else among)
        if ends:
            tests.append(_range(name, ends))
        return tests[0] if len(tests) == 1 else Every(tuple(tests))

    def value(self, place: str, kind: str, value: Any) -> Any:
        """A value as a column of this kind holds it."""
        if kind in ("string", "strings") and isinstance(value, str):
            return value.encode()
        if kind == "boolean" and isinstance(value, bool):
            return value
        if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind == "timestamp" and isinstance(value, str):
            return self.time(place, value)
        raise self.refuse(place, f"{value!r} is not {_VALUE[kind]}, which an attribute of kind {kind} has")

    def time(self, place: str, value: str) -> int:
        try:
            moment = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            example = "2026-11-29T12:00:00Z, or 2026-11-29"
            raise self.refuse(place, f"{value!r} is no time; write it as {example}") from None
        since = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)) - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _range(name: str, ends: Mapping[str, float]) -> Between:
    """The range of all of some bounds."""
    # Of two bounds with one value the open one is the narrower.
    low, not_closed = max(
        ((ends[name], name == ">") for name in (">", ">=") if name in ends), default=(-math.inf, False)
    )
    high, closed = min(((ends[name], name == "<=") for name in ("<", "<=") if name in ends), default=(math.inf, True))
    return Between(name, low, high, not_closed, not closed)
