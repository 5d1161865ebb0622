"""What a rule leaves of a version of a live catalogue, and how much of it an answer can come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from genrec.live.changes import Changes
from genrec.rules.bound import Filter
from genrec.rules.matching import matcher
from genrec.rules.narrowing import is_narrowed

BEAM_WIDTH = 128  # where no bundle says it


@dataclass(frozen=True)
class RuleReach:
    """items, semantic_ids: that the rule leaves. share: of the live items. reachable: items that a draft leads to.

    narrowed: whether a beam drafts from these items alone; else from all, and drafts are checked. drafts: semantic IDs
    among the `beam_width` that lead to one of the items: about so many if users like these items as they like others.
    """

    items: int
    semantic_ids: int
    reachable: int
    share: float
    narrowed: bool
    beam_width: int
    drafts: int

    def figures(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def left_by(rule: Filter, items: Changes) -> np.ndarray:
    """bool [n]: which items a rule leaves. Their attributes are those of the catalogue's kinds."""
    left = np.ones(len(items), bool)
    if rule.allow is not None:
        left &= np.isin(items.item_ids, [*rule.allow])
    if rule.where is not None:
        left &= matcher(rule.where, items.columns)(slice(0, len(items)))
    return left


def rule_reach(codes: np.ndarray, live: int, top_k: int, beam_width: int) -> RuleReach:
    """codes: of the items that a rule leaves, int64 [n], of `live` ones. top_k: items of the longest answer."""
    sizes = np.unique(codes, return_counts=True)[1]
    share = codes.size / live if live else 0.0
    narrowed = is_narrowed(codes.size, live)
    drafts = min(beam_width, sizes.size) if narrowed else round(beam_width * share)
    return RuleReach(
        items=codes.size,
        semantic_ids=sizes.size,
        reachable=int(np.minimum(sizes, top_k).sum()),
        share=share,
        narrowed=narrowed,
        beam_width=beam_width,
        drafts=drafts,
    )
