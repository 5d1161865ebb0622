"""Votes: which items the same users bought, as a second opinion on a model's drafts.

A model knows what is probable, and little of items that few users bought. Counting is the reverse. So each item of a
user's history votes for the items that are nearest to it by item-kNN, and the score of an item becomes

    log p + weight * log(1 + votes / doubt)

A draft that nobody votes for keeps its log-probability. The MOST_VOTED items with the most votes are ranked, too, if
they were not drafted: they are held to be as probable as the least probable draft. An item that the votes have never
seen, such as one that came to a live catalogue, gets what the request's drafts get on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genrec.arrays import load_array, save_array
from genrec.catalog import CatalogView
from genrec.catalog.ragged import runs
from genrec.catalog.row_sets import is_in

MOST_VOTED = 50


class VotesConfig(BaseModel):
    """decay: of an item's votes against those of the item after it in the history. weight, doubt: see the module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    doubt: Annotated[float, Field(ge=1e-9, le=1e9)] = 1e-2


@dataclass(frozen=True, eq=False)
class ItemVotes:
    """For which items each item votes.

    Items are rows of a bundle's catalogue of n. offsets: int64 [n + 1]; neighbours: int32 [m], the rows that row r
    votes for at offsets[r]:offsets[r + 1]; similarity: float32 [m], with how much, above 0 and at most 1.
    """

    config: VotesConfig
    offsets: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return self.offsets.size - 1

    def cast(self, request: np.ndarray, rows: np.ndarray, requests: int) -> tuple[np.ndarray, np.ndarray]:
        """What the histories of a batch of B = `requests` vote for.

        request: int64 [h], rising; rows: int64 [h], the items of its history, oldest first. Returns keys, int64 [v],
        rising: request * n + row; and their votes, float64 [v], above 0.
        """
        last = np.bincount(request, minlength=requests).cumsum()
        voice = self.config.decay ** (last[request] - 1.0 - np.arange(request.size))
        begin = self.offsets.take(rows)
        at, voter = runs(begin, self.offsets.take(rows + 1) - begin)
        keys, place = np.unique(request.take(voter) * len(self) + self.neighbours.take(at), return_inverse=True)
        return keys, np.bincount(place, voice.take(voter) * self.similarity.take(at), keys.size)

    def worth(self, votes: np.ndarray) -> np.ndarray:
        """What votes, float [v], add to a log-probability: float64 [v]."""
        return self.config.weight * np.log1p(votes / self.config.doubt)

    def problems(self) -> Iterator[str]:
        """What would end whoever reads them: `file: problem` texts, none if they are whole."""
        steps = np.diff(self.offsets)
        if self.offsets[0] != 0 or steps.min(initial=0) < 0 or self.offsets[-1] != self.neighbours.size:
            yield f"offsets.npy: does not divide the {self.neighbours.size} neighbours among the items"
        if self.neighbours.size and not 0 <= self.neighbours.min() <= self.neighbours.max() < len(self):
            yield f"neighbours.npy: has rows outside of the {len(self)} items"
        if not ((self.similarity > 0) & (self.similarity <= 1)).all():
            yield "similarity.npy: has values that are not above 0 and at most 1"

    def save(self, folder: Path) -> None:
        """Write the arrays into `folder`."""
        for name in ("offsets", "neighbours", "similarity"):
            save_array(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path, config: VotesConfig, items: int) -> ItemVotes:
        """Map the arrays in `folder`, of a catalogue of `items`. Raises ValueError that names the file at fault."""
        neighbours = load_array(folder / "neighbours.npy", np.int32, (None,))
        return cls(
            config=config,
            offsets=load_array(folder / "offsets.npy", np.int64, (items + 1,)),
            neighbours=neighbours,
            similarity=load_array(folder / "similarity.npy", np.float32, neighbours.shape),
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items of a batch that may be answered, request by request, best first; an item may come twice.

    request: int64 [c], rising. rows: int64 [c]. scores: float32 [c], with what votes add, falling within a request.
    voted: bool [c], those that were not drafted. tie: int64 [c], rising: the same for items of one draft that score
    the same, which nothing here puts in order.
    """

    request: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    voted: np.ndarray
    tie: np.ndarray

    def of(self, number: int) -> Candidates:
        """Those of one request."""
        own = slice(*np.searchsorted(self.request, [number, number + 1]))
        tie = self.tie[own]
        return Candidates(self.request[own], self.rows[own], self.scores[own], self.voted[own], tie - tie[:1])

    @property
    def tie_scores(self) -> np.ndarray:
        """The score of each tie of one request, float32 [t], falling: what rules take for drafts."""
        return self.scores[np.searchsorted(self.tie, np.arange(self.tie[-1] + 1))] if self.tie.size else self.scores

    def expand(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of the ties begin .. end - 1 of one request, and which tie each is of."""
        own = slice(*np.searchsorted(self.tie, [begin, end]))
        return self.rows[own], self.tie[own]


class Voting:
    """Votes on one version of the catalogue.

    catalog: the bundle's, whose rows the votes mean. view: the version, with rows of its own if it is a live one.
    """

    def __init__(self, votes: ItemVotes, catalog: CatalogView, view: CatalogView) -> None:
        self._votes, self._catalog, self._view, self._same = votes, catalog, view, view is catalog

    def candidates(
        self,
        request: np.ndarray,
        draft: np.ndarray,
        rows: np.ndarray,
        scores: np.ndarray,
        least: np.ndarray,
        histories: Sequence[np.ndarray],
    ) -> Candidates:
        """The drafted items of a batch of B requests, and the most voted for.

        request, draft: int64 [d], of each drafted item, the latter its beam; rows: integers [d]; scores: float32 [d],
        log p. least: float [B], log p of an item that was not drafted. histories: B arrays of rows, oldest first, as
        the prompt holds them.
        """
        votes, batch, count = self._votes, len(least), len(self._votes)
        own, known, keys, cast = self._cast(histories, rows)
        key = np.where(known, request * count + own, -1)
        at = np.searchsorted(keys, key)
        hit = is_in(key, keys)
        added = np.zeros(rows.size)
        added[hit] = votes.worth(cast[at[hit]])
        if not known.all():
            seen = np.bincount(request[known], minlength=batch)
            mean = np.bincount(request[known], added[known], batch) / np.maximum(seen, 1)
            added[~known] = mean[request[~known]]

        most = _most_of_each(keys // max(1, count), cast, MOST_VOTED)
        most = most[~is_in(keys[most], np.sort(key))]
        voter, voted = np.divmod(keys[most], max(1, count))
        voted = self._rows_of(voted)
        there = np.flatnonzero(voted >= 0)
        there = there[self._view.are_live(voted[there])]
        voter, voted, most = voter[there], voted[there], most[there]

        owner = np.concatenate([request, voter])
        beam = np.concatenate([draft, draft.max(initial=0) + 1 + np.arange(voted.size)])
        score = np.concatenate([scores + added, least[voter] + votes.worth(cast[most])]).astype(np.float32)
        order = np.lexsort((beam, -score, owner))
        owner, beam, score = owner[order], beam[order], score[order]
        other = (np.diff(owner) != 0) | (np.diff(score) != 0) | (np.diff(beam) != 0)
        return Candidates(
            request=owner,
            rows=np.concatenate([rows, voted]).astype(np.int64)[order],
            scores=score,
            voted=order >= rows.size,
            tie=np.concatenate([[0], other.cumsum()])[: owner.size],
        )

    def _cast(
        self, histories: Sequence[np.ndarray], rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The bundle's rows of `rows`, and which of them it has; then what `ItemVotes.cast` gives."""
        sizes = np.fromiter(map(len, histories), np.int64, len(histories))
        own = self._own_rows(np.concatenate([*histories, rows]))
        history, own = np.split(own, [sizes.sum()])
        known = history >= 0
        request = np.arange(sizes.size).repeat(sizes)
        keys, cast = self._votes.cast(request[known], history[known], sizes.size)
        return own, own >= 0, keys, cast

    def _own_rows(self, rows: np.ndarray) -> np.ndarray:
        """The bundle's rows of items of the version, integers [m], -1 for those that it does not have."""
        return rows if self._same else self._catalog.rows_of(self._view.ids_of(rows))

    def _rows_of(self, own: np.ndarray) -> np.ndarray:
        """The version's rows of items of the bundle, integers [m], -1 for those that are gone."""
        return own if self._same else self._view.rows_of(self._catalog.ids_of(own))


def _most_of_each(request: np.ndarray, votes: np.ndarray, most: int) -> np.ndarray:
    """Places of the `most` highest `votes` (float [v]) of each request (int64 [v], rising): int64 [m]."""
    order = np.lexsort((-votes, request))
    first = np.searchsorted(request, request)  # where each one's request begins
    return order[np.arange(order.size) - first < most]
