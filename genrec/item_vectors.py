"""Vectors of items, learned from what users took next: how well an item follows a history.

An item-similarity model (FISM, Kabbur et al. 2013) for sequences. Every item has one vector for when it stands in a
history and another for when it may come next. With the places k of a history, its last item first:

    u = sum_k w_k before[i_k] / sqrt(sum_k w_k);    affinity of item j = u . after[j] + bias[j]

It knows each item by its own vectors, where a model that writes semantic IDs knows it by codes that others share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from genrec.arrays import load_array, save_array
from genrec.catalog.ragged import joined


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of a catalogue of n items, by its rows.

    before, after: float32 [n, e]. bias: float32 [n]. places: float32 [H], above 0: the weights w of the history's last
    item, of that before it, and so on; what is older than all has the last one's.
    """

    before: np.ndarray
    after: np.ndarray
    bias: np.ndarray
    places: np.ndarray

    def readers(self, request: np.ndarray, rows: np.ndarray, requests: int) -> np.ndarray:
        """The vectors u of a batch of B = `requests`: float32 [B, e], 0 for a request without a history.

        request: int64 [h], rising; rows: int64 [h], the items of its history, oldest first.
        """
        count = np.bincount(request, minlength=requests)
        end = count.cumsum()
        age = end[request] - 1 - np.arange(request.size)
        weight = self.places.take(np.minimum(age, self.places.size - 1))
        found = np.zeros((requests, self.before.shape[1]), np.float32)
        known = np.flatnonzero(count)
        if known.size:
            first = (end - count)[known]
            stands = self.before.take(rows, 0) * weight[:, None]
            found[known] = np.add.reduceat(stands, first) / np.sqrt(np.add.reduceat(weight, first))[:, None]
        return found

    def affinity(self, readers: np.ndarray, request: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How well items, rows: int64 [m], follow the histories of their requests, int64 [m]: float32 [m]."""
        return np.einsum("me,me->m", readers.take(request, 0), self.after.take(rows, 0)) + self.bias.take(rows)

    def affinities(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """How well every item follows each of B histories, rows, oldest first: float32 [B, n].

        For measurements; it takes the time of a whole catalogue.
        """
        return self.readers(*joined(histories), len(histories)) @ self.after.T + self.bias

    @property
    def largest(self) -> float:
        """What no affinity can exceed, by its size, of a history with as many items as there are places."""
        before, after = (np.linalg.norm(each, axis=1).max(initial=0) for each in (self.before, self.after))
        read = float(before) * max(0.0, float(self.places.sum())) ** 0.5
        return read * float(after) + float(np.abs(self.bias).max(initial=0))

    def problems(self) -> Iterator[str]:
        """What would spoil every answer: `file: problem` texts, none if they are whole."""
        for field in fields(self):
            if not np.isfinite(getattr(self, field.name)).all():
                yield f"{field.name}.npy: has values that are no finite numbers"
        if not (self.places > 0).all():
            yield "places.npy: has weights that are not above 0"

    def save(self, folder: Path) -> None:
        """Write the arrays into `folder`."""
        for field in fields(self):
            save_array(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path, items: int) -> ItemVectors:
        """Map the arrays in `folder`, of a catalogue of `items`. Raises ValueError that names the file at fault."""
        before = load_array(folder / "before.npy", np.float32, (items, None))
        return cls(
            before=before,
            after=load_array(folder / "after.npy", np.float32, before.shape),
            bias=load_array(folder / "bias.npy", np.float32, (items,)),
            places=load_array(folder / "places.npy", np.float32, (None,)),
        )
