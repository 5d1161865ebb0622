"""The masks of rules: made once for each filter and kept up with the catalogue, so that no beam is wasted.

Whether a beam is narrowed is decided by the share of the items that a filter leaves. Where it leaves most of them,
enough drafts survive it anyway. Where it leaves very many, the mask holds the first levels only: that takes less time.
Making masks takes a bounded share of the time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from genrec.catalog import CatalogVersion, CatalogView, SemanticIdSpace
from genrec.catalog.prefixes import distinct
from genrec.catalog.rule_masks import RuleMasks
from genrec.rules.bound import Filter
from genrec.rules.matching import Kept
from genrec.rules.scan import allowed_rows, holds, share_of

WIDE = 0.5  # the share of the items from which on drafts are only checked
MOST_ROWS = 150_000  # semantic IDs of a mask with all levels: making it takes some 15 ms
MAKING, _SAVED_S = 0.2, 0.05  # the share of the time that may go into making masks, and how much of it can be saved up
_MOST_KNOWN, _MOST_IDS = 4096, 100_000  # filters that something is known of, and ids that they name


def is_narrowed(items: int, live: int, wide: float = WIDE) -> bool:
    """Whether a beam is narrowed for a filter that leaves so many of the live items."""
    return items < wide * live


@dataclass
class _Known:
    """What is known of a filter. version: of the catalogue that it holds for. mask: None if it has none.

    items: that it leaves, by a sample if exact is False. made_of, added: items when the mask was made, and since.
    """

    version: int
    items: int
    exact: bool
    mask: np.ndarray | None = None
    made_of: int = 0
    added: int = 0


@dataclass(frozen=True)
class Narrowed:
    """What a beam is narrowed by: mask as of `RuleMasks`, None to draft from all items.

    items: left by rules, about; -1 if that is not known.
    """

    mask: np.ndarray | None
    items: int

    def noted(self) -> np.ndarray:
        """Whether there is a mask, and the items: int64 [1, 2]."""
        return np.array([[self.mask is not None, self.items]], np.int64)


def masks_of(batch: Sequence[Narrowed]) -> list[np.ndarray | None] | None:
    """The masks that an engine drafts a batch with; None if no request has one, which any engine takes."""
    masks = [one.mask for one in batch]
    return masks if any(mask is not None for mask in masks) else None


class _Allowance:
    """A share of the time that goes by, of which at most `_SAVED_S` is saved up."""

    def __init__(self, share: float) -> None:
        self._share, self._left_s, self._at = share, _SAVED_S, time.monotonic()

    def is_left(self) -> bool:
        now = time.monotonic()
        self._left_s = min(_SAVED_S, self._left_s + self._share * (now - self._at))
        self._at = now
        return self._left_s > 0

    @contextmanager
    def spent(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._left_s -= time.monotonic() - began


class Narrowing:
    """Masks of filters, the ones that were used last within the memory of `masks`.

    masks: None for an engine that takes none; drafts are then only checked. written: is told of rows of `masks` that
    were written, int64 [n], where an engine drafts with a copy.
    making: the share of the time that may go into making masks. Where more is asked for, as by more rules in turn than
    there is memory for, the drafts of the others are only checked: so those that are there stay, and no request waits
    for the masks of many others.
    """

    def __init__(
        self,
        space: SemanticIdSpace,
        masks: RuleMasks | None,
        written: Callable[[np.ndarray], None] | None = None,
        wide: float = WIDE,
        most_rows: int = MOST_ROWS,
        making: float = MAKING,
    ) -> None:
        self._allowance = _Allowance(making)
        self._space, self._masks, self._written = space, masks, written
        self._wide, self._most_rows = wide, most_rows
        self._known: OrderedDict[frozenset[Filter], _Known] = OrderedDict()
        self._kept = Kept()
        self._ids = 0

    def of_batch(
        self,
        view: CatalogView,
        version: int,
        batch: Sequence[frozenset[Filter]],
        in_use: Collection[frozenset[Filter]] = (),
    ) -> list[Narrowed]:
        """What each request of a batch is narrowed by. The masks are good until the next call.

        view: of the catalogue's version. batch: the filters of each request, empty for one without. in_use: filters
        whose masks have to stay good for longer.
        """
        stay = {*batch, *in_use}
        found = {frozenset[Filter](): Narrowed(None, view.live_items)}
        for filters in set(batch) - found.keys():
            known = self._up_to(view, version, filters, stay)
            found[filters] = Narrowed(known.mask, known.items)
        return [found[filters] for filters in batch]

    def _up_to(
        self, view: CatalogView, version: int, filters: frozenset[Filter], stay: set[frozenset[Filter]]
    ) -> _Known:
        known = self._known.get(filters)
        if known is not None and known.version < version:
            if not self._keep_up(view, version, filters, known):
                self._forget(filters)
                known = None
        if known is None:
            if not self._allowance.is_left():
                return _Known(version, -1, False)
            with self._allowance.spent():
                known = self._made(view, version, filters, stay)
            self._known[filters] = known
            self._ids += _ids_of(filters)
            while len(self._known) > _MOST_KNOWN or self._ids > _MOST_IDS:
                oldest = next((one for one in self._known if one not in stay), None)
                if oldest is None:
                    break
                self._forget(oldest)
        self._known.move_to_end(filters)
        return known

    def _made(
        self, view: CatalogView, version: int, filters: frozenset[Filter], stay: set[frozenset[Filter]]
    ) -> _Known:
        every = list(filters)
        if not any(one.allow is not None for one in every):
            share = share_of(view, every, self._kept)
            if share >= self._wide:
                return _Known(version, round(share * view.live_items), False)
        rows = allowed_rows(view, every, self._kept, exact=False)
        codes = self._codes(view, rows)
        return _Known(version, rows.size, True, self._built(codes, stay), codes.size)

    def _built(self, codes: np.ndarray, stay: set[frozenset[Filter]]) -> np.ndarray | None:
        """A mask of codes; those go for it that were not used for the longest time."""
        if self._masks is None:
            return None

        def make_room() -> bool:
            oldest = next((one for one in self._known if self._may_go(one, stay)), None)
            if oldest is not None:
                self._forget(oldest)
            return oldest is not None

        build = self._masks.build if codes.size <= self._most_rows else self._masks.build_first_levels
        mask = build(codes, make_room)
        if mask is None:
            return None
        if self._written is not None:
            self._written(self._masks.rows(mask))
        return mask

    def _keep_up(self, view: CatalogView, version: int, filters: frozenset[Filter], known: _Known) -> bool:
        """Make `known` good for another version; False if that takes making it anew.

        A mask may allow too much, never too little: so what left is not looked for.
        """
        changed = view.changed_since(known.version)
        if changed is None or not known.exact:
            return False
        if known.mask is not None and self._masks is not None and changed.size:
            rows = changed[holds(view, list(filters), changed, self._kept)]
            known.added += rows.size
            if known.added > max(1000, known.made_of):
                return False
            codes = self._codes(view, rows)
            self._masks.add(known.mask, codes)
            if self._written is not None:
                self._written(self._masks.rows(known.mask, codes))
        known.version = version
        return True

    def _codes(self, view: CatalogView, rows: np.ndarray) -> np.ndarray:
        """The semantic IDs of rows, distinct unless they are very many."""
        if isinstance(view, CatalogVersion):
            codes = view.codes_of(rows)
            if rows.size and rows[-1] < len(view.base):  # a base is in their order
                return distinct(codes)
        else:
            codes = self._space.encode(view.sids_of(rows))
        return np.unique(codes) if codes.size <= 2 * self._most_rows else codes

    def _may_go(self, filters: frozenset[Filter], stay: set[frozenset[Filter]]) -> bool:
        return filters not in stay and self._known[filters].mask is not None

    def _forget(self, filters: frozenset[Filter]) -> None:
        known = self._known.pop(filters)
        self._ids -= _ids_of(filters)
        if known.mask is not None and self._masks is not None:
            self._masks.free(known.mask)


def _ids_of(filters: frozenset[Filter]) -> int:
    """How many ids filters name."""
    return sum(len(one.allow or ()) for one in filters)
