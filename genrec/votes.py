"""Votes: which items the same users bought, as a second opinion on a model's drafts.

A model knows what is probable, and little of items that few users bought. Counting is the reverse. So each item of a
user's history votes for the items that are nearest to it by item-kNN. With `ItemVectors`, what was learned of the items
themselves counts, too: the affinity of the history and an item, against the mean of the request's drafts. The score of
an item becomes

    log p + weight * log(1 + votes / doubt) + affinity_weight * (affinity - mean affinity)

Without vectors, a draft that nobody votes for keeps its log-probability. Of the items that were not drafted, the
MOST_VOTED with the most votes are ranked, too: they are held to be as probable as the least probable draft. An item
that the votes have never seen, such as one that came to a live catalogue, gets what the drafts get on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from genrec.arrays import load_array, save_array
from genrec.catalog import CatalogView
from genrec.catalog.ragged import rank_in_group, runs
from genrec.catalog.row_sets import is_in
from genrec.item_vectors import ItemVectors

# Several times what a request may ask for by default: those that are gone, in the history or against a rule drop out.
MOST_VOTED = 200
# Larger than any difference of scores, so that one sort puts those of each request in order; of 64 requests, float64
# still tells the last bits of a float32.
_APART = 1e6
VECTORS = "vectors"  # a folder beside the votes' arrays


class VotesConfig(BaseModel):
    """decay: of an item's votes against those of the item after it in the history. weight, doubt, affinity_weight: see
    the module; the last is 0 without vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    doubt: Annotated[float, Field(ge=1e-9, le=1e9)] = 1e-2
    affinity_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0

    @model_serializer(mode="wrap")
    def _readable_without_vectors(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A genrec of before vectors refuses the name, so only votes with some say so."""
        return {name: value for name, value in write(self).items() if name != "affinity_weight" or value}


@dataclass(frozen=True, eq=False)
class ItemVotes:
    """For which items each item votes.

    Items are rows of a bundle's catalogue of n. offsets: int64 [n + 1]; neighbours: int32 [m], the rows that row r
    votes for at offsets[r]:offsets[r + 1]; similarity: float32 [m], with how much, above 0 and at most 1. vectors: of
    the items, only with an affinity_weight.
    """

    config: VotesConfig
    offsets: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray
    vectors: ItemVectors | None = None

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
        keys = (request * len(self)).take(voter) + self.neighbours.take(at)
        order = keys.argsort(kind="stable")  # so that what an item gets is always added up in the same order
        keys = keys.take(order)
        first = np.ones(keys.size, bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        first = first.nonzero()[0]
        share = (voice.take(voter) * self.similarity.take(at)).take(order)
        return keys.take(first), np.add.reduceat(share, first) if first.size else share

    def are_counted(self, rows: np.ndarray) -> np.ndarray:
        """bool [m], of rows, integers [m]: whether somebody has bought the item beside another. -1 says nothing."""
        return self.offsets.take(rows + 1) > self.offsets.take(rows, mode="clip")

    def worth(self, votes: np.ndarray) -> np.ndarray:
        """What votes, float [v], add to a log-probability: float64 [v]."""
        return self.config.weight * np.log1p(votes / self.config.doubt)

    def follow(
        self, reader: np.ndarray, history: np.ndarray, request: np.ndarray, rows: np.ndarray, requests: int
    ) -> np.ndarray:
        """What the affinity of items adds before it is set against that of drafts: float64 [m], 0 without a history.

        reader, history: int64 [h], requests and items as `cast` takes them; request, rows: int64 [m], of the items.
        """
        assert self.vectors is not None
        affinity = self.vectors.affinity(self.vectors.readers(reader, history, requests), request, rows)
        reads = np.bincount(reader, minlength=requests) > 0
        return np.where(reads[request], self.config.affinity_weight * affinity.astype(np.float64), 0.0)

    def problems(self) -> Iterator[str]:
        """What would end whoever reads them: `file: problem` texts, none if they are whole."""
        falls = (self.offsets[1:] < self.offsets[:-1]).any()
        if self.offsets[0] != 0 or falls or self.offsets[-1] != self.neighbours.size:
            yield f"offsets.npy: does not divide the {self.neighbours.size} neighbours among the items"
        if self.neighbours.size and not 0 <= self.neighbours.min() <= self.neighbours.max() < len(self):
            yield f"neighbours.npy: has rows outside of the {len(self)} items"
        if not ((self.similarity > 0) & (self.similarity <= 1)).all():
            yield "similarity.npy: has values that are not above 0 and at most 1"
        if self.vectors is not None:
            yield from (f"{VECTORS}/{problem}" for problem in self.vectors.problems())
            reach = self.config.affinity_weight * self.vectors.largest
            if _APART / 4 < reach < np.inf:  # what is not finite was named above
                yield f"{VECTORS}: may add {reach:.3g} to a score, where at most {_APART / 4:.3g} is kept apart"

    def save(self, folder: Path) -> None:
        """Write the arrays into `folder`."""
        for name in ("offsets", "neighbours", "similarity"):
            save_array(folder / f"{name}.npy", getattr(self, name))
        if self.vectors is not None:
            self.vectors.save(folder / VECTORS)

    @classmethod
    def load(cls, folder: Path, config: VotesConfig, items: int) -> ItemVotes:
        """Map the arrays in `folder`, of a catalogue of `items`. Raises ValueError that names the file at fault."""
        neighbours = load_array(folder / "neighbours.npy", np.int32, (None,))
        return cls(
            config=config,
            offsets=load_array(folder / "offsets.npy", np.int64, (items + 1,)),
            neighbours=neighbours,
            similarity=load_array(folder / "similarity.npy", np.float32, neighbours.shape),
            vectors=ItemVectors.load(folder / VECTORS, items) if config.affinity_weight else None,
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items of a batch that may be answered, request by request, best first; an item may come twice.

    request: int64 [c], rising. draft: int64 [c], of which draft of the request an item is. rows: int64 [c]. scores:
    float32 [c], with what votes add, falling within a request. voted: bool [c], those that were not drafted, each of
    a draft of its own.
    """

    request: np.ndarray
    draft: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    voted: np.ndarray

    def of(self, number: int) -> Ties:
        """Those of one request."""
        own = slice(*np.searchsorted(self.request, [number, number + 1]))
        draft, scores = self.draft[own], self.scores[own]
        other = np.ones(draft.size, bool)
        other[1:] = (draft[1:] != draft[:-1]) | (scores[1:] != scores[:-1])
        return Ties(self.rows[own], scores[other], other.cumsum() - 1, np.sort(self.rows[own][self.voted[own]]))


@dataclass(frozen=True, eq=False)
class Ties:
    """Candidates of one request for rules, which take a tie for a draft: items of one draft that score the same.

    rows: int64 [c], best first. scores: float32 [t], of each tie, falling. tie: int64 [c], rising, of each item. voted:
    int64 [v], rising: the rows that were not drafted.
    """

    rows: np.ndarray
    scores: np.ndarray
    tie: np.ndarray
    voted: np.ndarray

    def expand(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of the ties begin .. end - 1, and which tie each is of."""
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
        the prompt holds them; empty for a request that nobody votes on.
        """
        votes, batch, count = self._votes, len(least), len(self._votes)
        reader, history, own = self._owned(histories, rows)
        keys, cast = votes.cast(reader, history, batch)
        key = np.where(own >= 0, request * count + own, -1)
        at = np.searchsorted(keys, key)
        hit = is_in(key, keys)
        added = np.zeros(rows.size)
        added[hit] = votes.worth(cast[at[hit]])
        seen = hit | ((own >= 0) & votes.are_counted(own))

        other = ~is_in(keys, np.sort(key))
        keys, cast = keys[other], cast[other]
        voter = keys // max(1, count)
        most = (voter * _APART - cast).argsort(kind="stable")
        most = most[rank_in_group(voter, batch) < MOST_VOTED]
        voter, chosen = np.divmod(keys[most], max(1, count))
        voted = self._rows_of(chosen)
        there = np.flatnonzero(voted >= 0)
        there = there[self._view.are_live(voted[there])]
        voter, voted, chosen, worth = voter[there], voted[there], chosen[there], votes.worth(cast[most[there]])

        if votes.vectors is not None:
            of, items = np.concatenate([request[seen], voter]), np.concatenate([own[seen], chosen])
            follow = votes.follow(reader, history, of, items, batch)
            drafts = items.size - voter.size
            usual = _means(of[:drafts], follow[:drafts], batch)
            unknown = np.bincount(of[:drafts], minlength=batch) == 0  # drafts: the voted are set against each other
            usual[unknown] = _means(of[drafts:], follow[drafts:], batch)[unknown]
            follow -= usual[of]
            added[seen] += follow[:drafts]
            worth += follow[drafts:]
        if not seen.all():
            added[~seen] = _means(request[seen], added[seen], batch)[request[~seen]]

        owner = np.concatenate([request, voter])
        beam = np.concatenate([draft, draft.max(initial=0) + 1 + np.arange(voted.size)])
        score = np.concatenate([scores + added, least[voter] + worth]).astype(np.float32)
        order = (owner * _APART - score).argsort(kind="stable")  # what ties stays in the order of the drafts
        return Candidates(
            request=owner.take(order),
            draft=beam.take(order),
            rows=np.concatenate([rows, voted]).take(order),
            scores=score.take(order),
            voted=order >= rows.size,
        )

    def _owned(self, histories: Sequence[np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The histories' items that the bundle has, request by request: of which request, int64 [h], and the bundle's
        rows, int64 [h]. Then the bundle's rows of `rows`, -1 for those that it does not have."""
        sizes = np.fromiter(map(len, histories), np.int64, len(histories))
        own = self._own_rows(np.concatenate([*histories, rows]))
        history, own = np.split(own, [sizes.sum()])
        known = history >= 0
        return np.arange(sizes.size).repeat(sizes)[known], history[known], own

    def _own_rows(self, rows: np.ndarray) -> np.ndarray:
        """The bundle's rows of items of the version, integers [m], -1 for those that it does not have."""
        return rows if self._same else self._catalog.rows_of(self._view.ids_of(rows))

    def _rows_of(self, own: np.ndarray) -> np.ndarray:
        """The version's rows of items of the bundle, integers [m], -1 for those that are gone."""
        return own if self._same else self._view.rows_of(self._catalog.ids_of(own))


def _means(request: np.ndarray, values: np.ndarray, requests: int) -> np.ndarray:
    """float64 [requests]: the mean of each request's values, [m], 0 where it has none."""
    return np.bincount(request, values, requests) / np.maximum(np.bincount(request, minlength=requests), 1)
