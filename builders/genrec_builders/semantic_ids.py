"""Residual k-means on item embeddings, and how well semantic IDs tell items apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from genrec.catalog import Fit, QuantizerError, ResidualQuantizer

# Above this many items, whole-data Lloyd iterations give way to mini-batches.
FULL_KMEANS_ITEMS = 100_000
# With so many items a code or more, items that were fitted on lie hardly closer to their codes than others do.
ITEMS_PER_CODE = 100
HELD_OUT = 10_000


@dataclass(frozen=True)
class SemanticIdReport:
    """How well semantic IDs tell items apart.

    items: n. levels: codes of each level, T_1 .. T_L. distinct: distinct semantic IDs. colliding_share: share of the
    items that share their ID with another, 0 to 1. largest_bucket: items of the most shared ID. codes_used: of each
    level. perplexity: of each level's codes over the items, exp of their entropy in nats; T_l if all are used alike, 1
    if one is.
    """

    items: int
    levels: tuple[int, ...]
    distinct: int
    colliding_share: float
    largest_bucket: int
    codes_used: tuple[int, ...]
    perplexity: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.levels)} levels of {_listed(self.levels)} codes ({_listed(self.codes_used)} used, perplexity "
            f"{_listed(round(each) for each in self.perplexity)}); "
            f"{self.distinct:,} distinct, {self.colliding_share:.1%} of the items share theirs, "
            f"at most {self.largest_bucket:,} items one"
        )


def fit_residual_kmeans(
    embeddings: np.ndarray,
    levels: Sequence[int],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ResidualQuantizer:
    """Fits one k-means codebook per level on the residuals of the levels before it.

    The same input and seed give the same codebooks on any number of cores. A level with no more distinct residuals
    than codes takes those residuals as its codebook; the codes left over repeat the first one, and are never assigned.

    embeddings: float [n, D], n at least 1, finite. levels: codes per level, T_1 .. T_L, each at least 1. seed: of the
    k-means++ starts. progress(levels done, L): called first with 0.

    Raises QuantizerError for wrong shapes, values that are not finite, or no levels.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or 0 in embeddings.shape or embeddings.dtype.kind != "f":
        raise QuantizerError(
            f"embeddings are {embeddings.dtype} {list(embeddings.shape)}; expected float [n, D], both at least 1"
        )
    if not len(levels) or min(levels) < 1:
        raise QuantizerError(f"levels are {tuple(levels)}; give at least one, each of at least 1 code")
    residual = embeddings.astype(np.float32)
    finite = np.isfinite(residual).all(axis=1)
    if not finite.all():
        raise QuantizerError(f"embedding {int(np.argmin(finite))} has values that are not finite within float32")

    seeds = np.random.SeedSequence(seed).generate_state(len(levels))
    codebooks: list[np.ndarray] = []
    for level, size in enumerate(levels):
        if progress is not None:
            progress(level, len(levels))
        book = _codebook(residual, int(size), int(seeds[level]))
        codebooks.append(book)
        residual = residual - book[ResidualQuantizer([book]).encode(residual)[:, 0]]
    if progress is not None:
        progress(len(levels), len(levels))
    return ResidualQuantizer(codebooks)


def measure_fit(
    quantizer: ResidualQuantizer,
    embeddings: np.ndarray,
    seed: int = 0,
    fit: Callable[[np.ndarray], ResidualQuantizer] | None = None,
) -> Fit | None:
    """How well the fit that gave `quantizer` describes items that it does not know.

    Codebooks lie closer to the items that they were fitted on, with few items a code much closer. So a tenth of the
    items, `HELD_OUT` at most, is measured by codebooks that are fitted on the others; with `ITEMS_PER_CODE` items a
    code, by the quantiser itself.

    embeddings: float [n, D], finite. fit: gives the codebooks of the rows bool [n]; None for `fit_residual_kmeans` of
    their embeddings. Returns None for fewer than 10 items.
    """
    count = len(embeddings)
    if count < 10:
        return None
    held = np.zeros(count, bool)
    held[np.random.default_rng(seed).permutation(count)[: min(count // 10, HELD_OUT)]] = True
    if count < ITEMS_PER_CODE * max(quantizer.levels):
        quantizer = fit_residual_kmeans(embeddings[~held], quantizer.levels, seed) if fit is None else fit(~held)
    sample = embeddings[held]
    error = quantizer.squared_errors(sample, quantizer.encode(sample)).mean()
    spread = embeddings[:: max(1, count // HELD_OUT)]  # enough for a variance
    return Fit(float(error), float(np.var(spread, axis=0, dtype=np.float64).sum()))


def _codebook(points: np.ndarray, size: int, seed: int) -> np.ndarray:
    """float32 [size, D]: k-means centroids of `points`, float32 [n, D]."""
    # Nearly always the first rows alone hold enough distinct points, and the sort of all of them is spared.
    few = np.unique(points[: 4 * size], axis=0)
    if len(few) <= size:
        few = np.unique(points, axis=0)
    if len(few) <= size:
        return np.concatenate([few, np.repeat(few[:1], size - len(few), axis=0)])
    if len(points) <= FULL_KMEANS_ITEMS:
        model = KMeans(n_clusters=size, init="k-means++", n_init=2, max_iter=50, random_state=seed)
    else:
        model = MiniBatchKMeans(
            n_clusters=size, init="k-means++", n_init=3, batch_size=max(4096, 8 * size), max_iter=20, random_state=seed
        )
    # Threads add up partial sums in the order in which they finish, which would make the last bits a matter of luck.
    with threadpool_limits(limits=1):
        model.fit(points)
    return np.ascontiguousarray(model.cluster_centers_, dtype=np.float32)


def semantic_id_report(sids: np.ndarray, levels: Sequence[int]) -> SemanticIdReport:
    """Counts what is shared and used of semantic IDs, integer [n, L], both at least 1. levels: T_1 .. T_L."""
    if sids.ndim != 2 or 0 in sids.shape:
        raise QuantizerError(f"sids have shape {list(sids.shape)}; expected [n, L], both at least 1")
    sizes = np.unique(sids, axis=0, return_counts=True)[1]
    shares = [np.unique(codes, return_counts=True)[1] / len(sids) for codes in sids.T]
    return SemanticIdReport(
        items=len(sids),
        levels=tuple(levels),
        distinct=len(sizes),
        colliding_share=float(sizes[sizes > 1].sum() / len(sids)),
        largest_bucket=int(sizes.max()),
        codes_used=tuple(share.size for share in shares),
        perplexity=tuple(float(np.exp(-(share * np.log(share)).sum())) for share in shares),
    )


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
