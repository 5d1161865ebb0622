"""Item embeddings of who bought what: items that the same users took close together lie close to each other.

Pairs of items within `WINDOW` places of one history count 1 / distance. The positive pointwise mutual information of
these counts, with the context's probabilities raised to `SMOOTHING`, is factorised by a truncated SVD (Levy, Goldberg
and Dagan, TACL 2015: what word2vec does implicitly). An embedding is an item's row of U S, of length 1.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from genrec_builders.data import Sequences

# The best of 16 by how near validation items of Instruments lie to their histories; among equally good widths, the one
# whose codes are used most evenly (docs/quality.md).
WIDTH, WINDOW, SMOOTHING = 32, 5, 0.75
_NOTHING = 1e-6  # of the longest vector: as much as rounding leaves of items that no leading component holds


def behaviour_embeddings(train: Sequences, items: int, seed: int = 0) -> np.ndarray:
    """float32 [items, D], rows of length 1, D the smaller of `WIDTH` and `items`; the same for the same input and seed.

    An item that no history holds beside another has a row of zeros, and so have small groups of items that are bought
    with nothing else, which none of the D components holds.

    train: the training part's histories, and nothing else: what is held out must not shape what it is tested with.
    items: size of the catalogue. seed: of the SVD. Takes memory for each pair of items that occurs, and for
    3 * items * (D + 10) float64.
    """
    information = _mutual_information(_neighbours(train, items))
    width = min(WIDTH, items)
    # Threads add up partial sums in the order in which they finish, which would make the last bits a matter of luck.
    with threadpool_limits(limits=1):
        left, strengths, _ = randomized_svd(information, width, n_iter=7, random_state=seed)
    vectors = left * strengths
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = (np.diff(information.indptr) > 0)[:, None] & (lengths > _NOTHING * lengths.max(initial=0))
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=known).astype(np.float32)


def _neighbours(train: Sequences, items: int) -> csr_matrix:
    """float64 [items, items], symmetric: pairs of different items by 1 / distance, summed over the histories."""
    lengths = np.diff(train.offsets)
    user, rows = np.repeat(np.arange(lengths.size), lengths), train.rows
    total = csr_matrix((items, items))
    for distance in range(1, min(WINDOW, int(lengths.max(initial=0)) - 1) + 1):
        earlier, later = rows[:-distance], rows[distance:]
        pair = (user[:-distance] == user[distance:]) & (earlier != later)
        weights = np.full(int(pair.sum()), 1.0 / distance)
        total = total + coo_matrix((weights, (earlier[pair], later[pair])), (items, items)).tocsr()
    return (total + total.T).tocsr()


def _mutual_information(counts: csr_matrix) -> csr_matrix:
    """max(0, log(P(i, j) / (P(i) P(j)^SMOOTHING / normaliser))) of counts [n, n]; pairs that never occur have 0."""
    sums = np.asarray(counts.sum(1)).ravel()
    context = sums**SMOOTHING
    context = context / max(context.sum(), np.finfo(float).tiny)
    pairs = counts.tocoo()
    information = np.log(pairs.data / (sums[pairs.row] * context[pairs.col]))
    positive = information > 0
    return csr_matrix((information[positive], (pairs.row[positive], pairs.col[positive])), counts.shape)
