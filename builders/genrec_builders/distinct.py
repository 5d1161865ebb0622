"""One semantic ID per item: who shares one moves to the nearest that is free."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.distance import cdist

from genrec.catalog import QuantizerError, ResidualQuantizer


def distinct_sids(
    quantizer: ResidualQuantizer, embeddings: np.ndarray, sids: np.ndarray, stays: np.ndarray | None = None
) -> np.ndarray:
    """int32 [n, L]: `sids` with every semantic ID given to one item alone.

    From the first level on, a prefix with more items than it has semantic IDs keeps those nearest to its centroid; each
    of the others takes the nearest code of that level whose prefix has room, and the nearest codes behind it. Where two
    want the last place, the nearer one has it; of equally near ones, the one of the lower row. So at the last level an
    item whose semantic ID is taken gets the nearest free last code, and nobody else moves.

    embeddings: float [n, D]. sids: integer [n, L], codes of the quantiser, of these embeddings as `encode` gives them
    or others. stays: bool [n], items that do not move, of which no two share a semantic ID.
    Raises QuantizerError for more items than there are semantic IDs.
    """
    levels = quantizer.levels
    if len(sids) > math.prod(levels):
        raise QuantizerError(
            f"{len(sids):,} items do not fit into {math.prod(levels):,} semantic IDs; give levels with more codes"
        )
    found = sids.astype(np.int32)
    residual, prefix = embeddings.astype(np.float64), np.zeros(len(found), np.int64)
    for level, book in enumerate(quantizer.codebooks):
        codes = found[:, level].copy()
        near = np.square(residual - book[codes]).sum(axis=1)
        if stays is not None:
            near[stays] = -1.0  # nearer than any other
        most = min(math.prod(levels[level + 1 :]), len(found))
        moved = _crowded_out(prefix * levels[level] + codes, near, most)
        if moved.size:
            room = _room(prefix, codes, moved, levels[level], most)
            groups = np.unique(prefix[moved], return_inverse=True)[1]
            codes[moved] = _nearest_free(cdist(residual[moved], book, "sqeuclidean"), groups, room)
            if level + 1 < len(levels):
                rest = ResidualQuantizer(quantizer.codebooks[level + 1 :])
                found[moved, level + 1 :] = rest.encode(residual[moved] - book[codes[moved]])
            found[:, level] = codes
        residual = residual - book[codes]
        prefix = np.unique(prefix * levels[level] + codes, return_inverse=True)[1]
    return found


def _crowded_out(places: np.ndarray, near: np.ndarray, most: int) -> np.ndarray:
    """Rows, ascending, that are behind the `most` nearest ones of their place. places: int64 [n]. near: float [n]."""
    order = np.lexsort((near, places))  # stable: of equally near ones, the lower row is first
    _, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
    return np.sort(order[np.arange(order.size) - np.repeat(starts, counts) >= most])


def _room(prefix: np.ndarray, codes: np.ndarray, moved: np.ndarray, size: int, most: int) -> np.ndarray:
    """int64 [prefixes of `moved`, size]: places behind each code, of `most`, once the rows `moved` are gone from it."""
    crowded, stays = np.unique(prefix[moved]), np.isin(prefix, prefix[moved])
    stays[moved] = False
    taken = np.bincount(np.searchsorted(crowded, prefix[stays]) * size + codes[stays], minlength=crowded.size * size)
    return most - taken.reshape(crowded.size, size)


def _nearest_free(distances: np.ndarray, groups: np.ndarray, room: np.ndarray) -> np.ndarray:
    """int64 [m]: the code that each row gets; `room` is used up, and has enough for the rows of every group.

    distances: float64 [m, T]. groups: int64 [m], rows of `room`, [groups, T].
    """
    chosen, waiting = np.empty(len(distances), np.int64), np.arange(len(distances))
    while waiting.size:
        wanted = np.where(room[groups[waiting]] > 0, distances[waiting], np.inf)
        best = wanted.argmin(axis=1)
        places = groups[waiting] * room.shape[1] + best
        order = np.lexsort((wanted[np.arange(best.size), best], places))
        _, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
        ahead = np.arange(order.size) - np.repeat(starts, counts)
        taken = order[ahead < room.ravel()[places[order]]]
        chosen[waiting[taken]] = best[taken]
        np.subtract.at(room.reshape(-1), places[taken], 1)
        waiting = np.delete(waiting, taken)
    return chosen
