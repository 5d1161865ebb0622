"""Groups of entities whose texts resemble each other, and the rule that puts an entity into one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from genrec.arrays import load_archive
from genrec.errors import shown
from genrec.knowledge.pools import GLOBAL

_FORMAT = 1


@dataclass(frozen=True)
class GroupRouter:
    """Which group an entity belongs to, by three rules; the first that applies picks:

    1. *collaborative*: an entity with at least `min_interactions` interactions, with items of the training data for a
       user, in the training data for an item, belongs to the cluster whose centroid is nearest to its embedding:
       `user:cluster:7`, `item:cluster:3`.
    2. *attribute*: otherwise an item belongs to its category, a user to the most frequent category of its history, the
       more recent one of two as frequent: `user:category:books`, `item:category:books`.
    3. Without either, `global`.

    Embeddings are unit vectors: an item's from the factorised interactions, a user's the direction of the sum of its
    items', so that users who were not there at training are routed alike.

    embeddings: float32 [items, d], zero for items without interactions. interactions: int64 [items], in training.
    categories: str [items], empty if unknown. user_centroids, item_centroids: float32 [clusters, d]. min_interactions:
    int64 [].
    """

    embeddings: np.ndarray
    interactions: np.ndarray
    categories: np.ndarray
    user_centroids: np.ndarray
    item_centroids: np.ndarray
    min_interactions: np.ndarray

    @classmethod
    def fit(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        categories: Sequence[str],
        *,
        dimensions: int = 32,
        user_clusters: int = 16,
        item_clusters: int = 16,
        min_interactions: int = 5,
        seed: int = 0,
    ) -> GroupRouter:
        """Learn groups from interactions: truncated SVD of the user-item matrix, then k-means. Needs scikit-learn.

        users, items: int [n], row numbers of an interaction's user and item. categories: one per item of the catalogue,
        empty if unknown. dimensions, user_clusters, item_clusters: upper limits, less for less data. min_interactions:
        below it an entity is cold.
        """
        from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD

        users, items = np.asarray(users, np.int64), np.asarray(items, np.int64)
        for name, value in (
            ("dimensions", dimensions),
            ("user_clusters", user_clusters),
            ("item_clusters", item_clusters),
            ("min_interactions", min_interactions),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if users.shape != items.shape or users.ndim != 1:
            raise ValueError(f"users has shape {users.shape} and items {items.shape}; give one of each per interaction")
        if not users.size:
            raise ValueError("there are no interactions to learn groups from")
        if users.min() < 0 or items.min() < 0 or items.max() >= len(categories):
            raise ValueError(
                f"items are rows {items.min()} to {items.max()} and users from {users.min()} on; items must be 0 to "
                f"{len(categories) - 1}, which have categories, and users at least 0"
            )
        interactions = np.bincount(items, minlength=len(categories))
        matrix = coo_matrix(
            (np.ones(users.size, np.float32), (users, items)), (users.max() + 1, len(categories))
        ).tocsr()
        matrix.data[:] = 1.0  # repeated interactions count once
        # Divided by the roots of both counts, or popular items and busy users would fill the first dimensions.
        weight = 1 / np.sqrt(np.maximum(np.asarray(matrix.sum(0)).ravel(), 1))
        scaled = matrix.multiply(weight).tocsr()
        scaled = scaled.multiply(1 / np.sqrt(np.maximum(np.asarray(matrix.sum(1)), 1))).tocsr()
        rank = min(dimensions, min(matrix.shape))
        svd = TruncatedSVD(rank, random_state=seed).fit(scaled)
        embeddings = _unit((svd.components_ * np.sqrt(svd.singular_values_)[:, None]).T)
        embeddings[interactions == 0] = 0.0

        def centroids(points: np.ndarray, clusters: int) -> np.ndarray:
            if not len(points):
                return np.empty((0, rank), np.float32)
            return KMeans(min(clusters, len(points)), n_init=4, random_state=seed).fit(points).cluster_centers_

        warm_users = np.bincount(users) >= min_interactions
        return cls(
            embeddings=embeddings,
            interactions=interactions,
            categories=np.array(categories, np.str_),
            user_centroids=centroids(_unit(matrix[np.flatnonzero(warm_users)] @ embeddings), user_clusters).astype(
                "f4"
            ),
            item_centroids=centroids(embeddings[interactions >= min_interactions], item_clusters).astype("f4"),
            min_interactions=np.array(min_interactions),
        )

    def user_group(self, history: np.ndarray) -> str:
        """Group of a user with `history`, int [n]: item rows, oldest first; those outside the catalogue are ignored."""
        history = np.asarray(history, np.int64)
        history = history[(history >= 0) & (history < self.interactions.size)]
        trained = history[self.interactions[history] > 0]
        if trained.size >= self.min_interactions and len(self.user_centroids):
            direction = _unit(self.embeddings[np.unique(trained)].sum(0, keepdims=True))
            return f"user:cluster:{_nearest(self.user_centroids, direction[0])}"
        names = self.categories[history]
        names = names[names != ""][::-1]
        if not names.size:
            return GLOBAL
        distinct, first, count = np.unique(names, return_index=True, return_counts=True)
        return f"user:category:{distinct[np.lexsort((first, -count))[0]]}"

    def item_group(self, row: int | None, category: str = "") -> str:
        """Group of the item in `row` of the catalogue, or of one that is not in it yet (None), with its `category`."""
        if row is not None and not 0 <= row < self.interactions.size:
            raise ValueError(f"item row is {row}; the router knows 0 to {self.interactions.size - 1}, or None")
        if row is not None:
            if self.interactions[row] >= self.min_interactions and len(self.item_centroids):
                return f"item:cluster:{_nearest(self.item_centroids, self.embeddings[row])}"
            category = category or str(self.categories[row])
        return f"item:category:{category}" if category else GLOBAL

    def save(self, path: Path) -> None:
        """Write the router to `path` (`.npz`)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, format=_FORMAT, **{entry.name: getattr(self, entry.name) for entry in fields(self)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> GroupRouter:
        """The router in `path`. Raises ValueError that names the file and what is wrong with it."""
        arrays = load_archive(path, "group router")
        if not np.array_equal(found := arrays.get("format", np.zeros(0)), _FORMAT):
            raise ValueError(f"{path}: has router format {shown(found.tolist())}, this version reads {_FORMAT}")
        try:
            router = cls(**{entry.name: arrays[entry.name] for entry in fields(cls)})
        except KeyError as error:
            raise ValueError(f"{path}: lacks the array {error}") from None
        if any(array.ndim == 0 for name, array in vars(router).items() if name != "min_interactions"):
            raise ValueError(f"{path}: has a single number where an array of several must be")
        items, size = router.embeddings.shape if router.embeddings.ndim == 2 else (-1, -1)
        expected = {
            "embeddings": ("f4", (items, size)),
            "interactions": ("i8", (items,)),
            "categories": (router.categories.dtype if router.categories.dtype.kind == "U" else "U1", (items,)),
            "user_centroids": ("f4", (len(router.user_centroids), size)),
            "item_centroids": ("f4", (len(router.item_centroids), size)),
            "min_interactions": ("i8", ()),
        }
        for name, (dtype, shape) in expected.items():
            array = getattr(router, name)
            if array.dtype != np.dtype(dtype) or array.shape != shape:
                raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
        return router


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of `vectors`, [n, d], at length 1, float32; zero rows stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _nearest(centroids: np.ndarray, point: np.ndarray) -> int:
    return int(((centroids - point) ** 2).sum(1).argmin())
