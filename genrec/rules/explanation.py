"""What rules did to an answer, in words that a program can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrec.rules.applied import Ruled


def explanation(ruled: Ruled, narrowed: bool, items: int, drafted: int, valid: int) -> dict[str, Any]:
    """What becomes JSON, of one answer.

    narrowed: whether the beam drafted allowed items only. items: that the rules leave of the catalogue, about, as they
    are counted by a sample where they are many; -1 if that is not known. drafted, valid: as in `counts`.
    """
    return {
        "narrowed": narrowed,
        "allowed_items": items,
        "drafted": drafted,
        "valid": valid,
        "dropped": {name: count for name, count in ruled.dropped.items() if count},
        "moved": ruled.moved,
        "filled": int(ruled.rows.size - ruled.drafted),
        "boosts": np.round(ruled.boosts.astype(np.float64), 6).tolist(),
    }
