"""The rules that requests are answered by: a deployment's own, and each request's beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

from genrec.catalog import CatalogView
from genrec.rules.applied import Applied
from genrec.rules.bound import BoundRules, Filter, bind
from genrec.rules.form import Rules, parse
from genrec.rules.matching import Kept

DEPLOYMENT, REQUEST = "deployment", "request"
_MOST_KEPT, _KEPT_BYTES, _LONG_KEPT = 1024, 4096, 16
Made = TypeVar("Made")
_NOTHING = Rules().canonical()


def kept(make: Callable[[bytes], Made], most: int) -> Callable[[bytes], Made]:
    """`make`, of texts of rules, with what it made of the last `most` short ones, and of a few long ones.

    Long texts list ids, mostly other ones for every user, and would take much memory: they are kept for as long as one
    batch asks for them.
    """
    short, long = lru_cache(most)(make), lru_cache(_LONG_KEPT)(make)
    return lambda text: (short if len(text) <= _KEPT_BYTES else long)(text)


class RuleBook:
    """Reads rules, and keeps those that came last.

    kinds: of the catalogue's attributes. deployment: the rules that hold for every request, as JSON; "" for none.
    """

    def __init__(self, kinds: Mapping[str, str], deployment: str = "") -> None:
        """Raises InvalidRequest for a deployment's rules that are wrong, or do not fit the catalogue."""
        self._kinds = dict(kinds)
        what = "the deployment's rules"
        self._deployment = {DEPLOYMENT: bind(parse(deployment, what), kinds, what)} if deployment else {}
        self._kept = Kept()
        self.read = kept(self._read, _MOST_KEPT)
        self.of = kept(self._of, _MOST_KEPT)
        self.filters = kept(self._filters, _MOST_KEPT)

    def _read(self, text: bytes) -> bytes:
        """The canonical form of a request's rules, of a multiple of 8 bytes; empty if they say nothing.

        Raises InvalidRequest.
        """
        rules = parse(text)
        bind(rules, self._kinds)
        canonical = rules.canonical()
        if canonical == _NOTHING:
            return b""
        encoded = canonical.encode()
        return encoded.ljust(-(-len(encoded) // 8) * 8)

    def _of(self, text: bytes) -> dict[str, BoundRules]:
        """All rules for a request whose own are `text`, by who gave them; those of the deployment first."""
        own = {REQUEST: bind(parse(text), self._kinds)} if text else {}
        return self._deployment | own

    def applied(self, view: CatalogView, text: bytes) -> Applied | None:
        """The rules for a request on a version of the catalogue; None if there are none."""
        rules = self.of(text)
        return Applied(view, rules, self._kept) if rules else None

    def _filters(self, text: bytes) -> frozenset[Filter]:
        """What the rules for a request leave, however they order it."""
        return frozenset(one.filter for one in self.of(text).values()) - {Filter(None, None)}
