"""What `genrec catalog inspect` finds out about a version of a live catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from genrec.catalog import Catalog, ResidualQuantizer, SemanticIdSpace
from genrec.live.drift import ERROR_LIMIT, LEAST_ITEMS, PSI_LIMIT, first_levels, is_added, stability, trained_levels
from genrec.live.rule_reach import BEAM_WIDTH, RuleReach, left_by, rule_reach
from genrec.live.store import CatalogStore
from genrec.prompt import Limits
from genrec.rules import Filter

TOP_K = Limits().top_k  # where no bundle says it
_BUNDLE = "give --bundle with the bundle that the catalogue was made of"


@dataclass(frozen=True)
class Unknown:
    """A figure that is not known: why, and what to do."""

    why: str


@dataclass(frozen=True)
class Sizes:
    """Live items per group, int64 [g], rising; there could be `possible` groups."""

    items: np.ndarray
    possible: int

    def quantile(self, share: float) -> int:
        """The size that at least `share` of the groups do not exceed; 0 if there is no group."""
        return int(np.quantile(self.items, share, method="inverted_cdf")) if self.items.size else 0

    def summary(self) -> dict[str, int]:
        """In use, possible, and p50, p99 and the largest of the sizes."""
        sizes = {"p50": self.quantile(0.5), "p99": self.quantile(0.99), "largest": self.quantile(1.0)}
        return {"in_use": self.items.size, "possible": self.possible, **sizes}


@dataclass(frozen=True)
class Drift:
    """What was added since the bundle, against the items that it was trained on.

    added: live items that are not in the bundle, or have another semantic ID there. stability: as `drift.stability`
    gives it. error: mean squared quantisation error of the added items that came with an embedding; trained_error: that
    of the trained catalogue, both relative to the variance of its embeddings. usage: shares of the trained and the
    added items on each code of level 0, float64 [2, T_0].
    """

    added: int | Unknown
    stability: tuple[float, ...] | Unknown
    error: float | Unknown
    trained_error: float | Unknown
    usage: np.ndarray | None

    @property
    def error_ratio(self) -> float | Unknown:
        """The added items' error over the trained ones'."""
        for figure in (self.error, self.trained_error):
            if isinstance(figure, Unknown):
                return figure
        assert isinstance(self.error, float) and isinstance(self.trained_error, float)
        return self.error / self.trained_error

    def warnings(self) -> list[str]:
        """Why it is time to train again; none if it is not, or not known."""
        found = []
        if not isinstance(self.stability, Unknown):
            for level, index in enumerate(self.stability):
                if index >= PSI_LIMIT:
                    given = " given level 0" if level else ""
                    found.append(
                        f"the added items lie on other codes than the trained ones: stability index {index:.2f} of "
                        f"level {level}{given}, the limit is {PSI_LIMIT:g}; train again"
                    )
        if not isinstance(self.error_ratio, Unknown) and self.error_ratio >= ERROR_LIMIT:
            found.append(
                f"the codebooks describe the added items {self.error_ratio:.2f} times worse than the trained ones, the "
                f"limit is {ERROR_LIMIT:g}; train again"
            )
        return found


@dataclass(frozen=True)
class Inspection:
    """A version of a catalogue. Times are Unix seconds.

    live, unavailable: items that may be returned, and that are only known. base: version of the newest base; commits:
    behind it, of which `refused` count as empty. top_k: most items of an answer. prefixes: of 1 .. L codes, the last
    being the buckets. rule: what one leaves, None if none was asked about.
    """

    version: int
    committed_at: float
    base: int
    base_committed_at: float
    commits: int
    refused: list[tuple[int, str]]
    live: int
    unavailable: int
    top_k: int
    prefixes: list[Sizes]
    drift: Drift
    rule: RuleReach | None

    @cached_property
    def unreachable(self) -> int:
        """Live items that no draft leads to: as many others of their bucket are more popular as an answer can have."""
        return int(np.maximum(self.prefixes[-1].items - self.top_k, 0).sum())

    @property
    def reachable_share(self) -> float:
        """Share of the live items that are not `unreachable`; 1 if there is none."""
        return 1 - self.unreachable / self.live if self.live else 1.0

    @property
    def shared_share(self) -> float:
        """Share of the live items whose semantic ID is another's too; 0 if there is none."""
        sizes = self.prefixes[-1].items
        return float(sizes[sizes > 1].sum() / self.live) if self.live else 0.0

    def figures(self) -> dict[str, Any]:
        """Everything as JSON can hold it; null is what is not known, and `unknown` says why."""
        drift = self.drift
        levels: tuple[float, ...] | list[None] | Unknown = drift.stability
        known = {
            "added": drift.added,
            "stability": list(levels) if isinstance(levels, tuple) else levels,
            "error": drift.error,
            "trained_error": drift.trained_error,
            "error_ratio": drift.error_ratio,
        }
        unknown = {name: figure.why for name, figure in known.items() if isinstance(figure, Unknown)}
        return {
            "version": self.version,
            "committed_at": self.committed_at,
            "base": self.base,
            "base_committed_at": self.base_committed_at,
            "commits": self.commits,
            "refused": [{"version": version, "why": why} for version, why in self.refused],
            "live": self.live,
            "unavailable": self.unavailable,
            "top_k": self.top_k,
            "unreachable": self.unreachable,
            "reachable_share": self.reachable_share,
            "shared_share": self.shared_share,
            "buckets": self.prefixes[-1].summary(),
            "prefixes": [sizes.summary() for sizes in self.prefixes[:-1]],
            "drift": {name: None if name in unknown else figure for name, figure in known.items()},
            "unknown": unknown,
            "warnings": drift.warnings(),
        } | ({} if self.rule is None else {"rule": self.rule.figures()})


def inspect_catalog(
    store: CatalogStore,
    version: int,
    trained: Catalog | None = None,
    top_k: int = TOP_K,
    rule: Filter | None = None,
    beam_width: int = BEAM_WIDTH,
) -> Inspection:
    """Read a version of `store` and measure it. Its items are not in memory at once, only 8 bytes of each.

    trained: the catalogue of the bundle, whose quantiser the store was opened with; None if there is no bundle. rule:
    one to ask about. beam_width: of the bundle.
    Raises CatalogStoreError for a version that is not there, or cannot be read.
    """
    space, contents = store.space, store.contents(version)
    live, unavailable, errors = [np.empty(0, np.int64)], 0, [np.empty(0)]
    added, left = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for items, squared in contents.parts:
        available = items.available == 1
        unavailable += int((~available).sum())
        codes = items.codes[available]
        live.append(codes)
        if rule is not None:
            left.append(items.codes[available & left_by(rule, items)])
        if trained is not None:
            new = is_added(trained, space, items.item_ids[available], codes)
            added.append(codes[new])
            errors.append(squared[available][new])
    codes, since = np.concatenate(live), np.concatenate(added)
    del live
    return Inspection(
        version=version,
        committed_at=store.committed_at(version),
        base=contents.base,
        base_committed_at=store.committed_at(contents.base),
        commits=contents.commits,
        refused=contents.refused,
        live=codes.size,
        unavailable=unavailable,
        top_k=top_k,
        prefixes=prefix_sizes(space, codes),
        drift=_drift(space, trained, store.quantizer, since, np.concatenate(errors)),
        rule=None if rule is None else rule_reach(np.concatenate(left), codes.size, top_k, beam_width),
    )


def prefix_sizes(space: SemanticIdSpace, codes: np.ndarray) -> list[Sizes]:
    """Items per prefix of 1 .. L codes; codes: of all items, int64 [n]."""
    found = []
    prefixes, counts = np.unique(codes, return_counts=True)
    for depth in range(space.depth, 0, -1):
        possible = space.size if depth == space.depth else int(space.radix[depth])
        if depth < space.depth:
            prefixes, place = np.unique(prefixes % possible, return_inverse=True)
            counts = np.bincount(place, counts, prefixes.size).astype(np.int64)
        found.append(Sizes(np.sort(counts), possible))
    return found[::-1]


def _drift(
    space: SemanticIdSpace,
    trained: Catalog | None,
    quantizer: ResidualQuantizer | None,
    added: np.ndarray,
    errors: np.ndarray,
) -> Drift:
    """added: codes of the live items that are added, int64 [m]; errors: theirs, float64 [m], NaN where not known."""
    if trained is None:
        unknown = Unknown(_BUNDLE)
        return Drift(unknown, unknown, unknown, unknown, None)
    levels = trained_levels(trained, space), first_levels(space, added)
    first = [np.bincount(part % space.levels[0], minlength=space.levels[0]) for part in levels]
    usage = np.array([counts / max(1, counts.sum()) for counts in first])
    few = Unknown(f"{added.size} items were added; from {LEAST_ITEMS} on there is something to measure")
    index = stability(space, *levels) if added.size >= LEAST_ITEMS else few
    return Drift(added.size, index, *_errors(quantizer, added.size, errors[~np.isnan(errors)]), usage)


def _errors(
    quantizer: ResidualQuantizer | None, added: int, errors: np.ndarray
) -> tuple[float | Unknown, float | Unknown]:
    """The added items' error, and the trained ones'."""
    if quantizer is None:
        unknown = Unknown("the bundle has no quantiser: its semantic IDs were given, or are of behaviour")
        return unknown, unknown
    if quantizer.fit is None:
        unknown = Unknown("the bundle is of before it was noted; build it again")
        return unknown, unknown
    if not min(quantizer.fit.error, quantizer.fit.variance):
        unknown = Unknown("the codebooks hold every trained embedding exactly; there is nothing to compare with")
        return unknown, unknown
    variance = quantizer.fit.variance
    trained = quantizer.fit.error / variance
    if errors.size < LEAST_ITEMS:
        return Unknown(
            f"{errors.size} of {added} added items came with an embedding, at least {LEAST_ITEMS} are needed; write "
            "embeddings, also beside sids"
        ), trained
    return float(errors.mean()) / variance, trained
