"""Whether knowledge texts help a recommender: a small ranking model with and without them as features.

Every user's last item is to be told from items that others took. What the model may know ends two items earlier, as
`genrec_builders.knowledge.texts` and the leave-one-out split have it: it is trained to find each user's last item but
one, and tested on the last. Without texts it knows the item's popularity, the length of the history, and how well user
and item fit in a factorisation of who took what. Texts add how alike a user's and an item's text are in each of their
topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from genrec.evaluation.bootstrap import Interval, relative_difference
from genrec_builders.data import Dataset, Sequences, popularity, split_leave_one_out

NONE = "none"
NEGATIVES = 50  # items per user that the right one is told from
_FACTORS = 32
_TOPICS = 64
_LEAST_USERS = 20


@dataclass(frozen=True)
class EntityTexts:
    """A text per user id and per item id. The users' may have been written of the training part only."""

    users: Mapping[str, str]
    items: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Downstream:
    """users: ids of the E test users. auc: per set of texts, and without any (`NONE`), float64 [E]: the share of the
    user's negatives that the model ranks below the user's item, ties half."""

    users: list[str]
    auc: dict[str, np.ndarray]

    def difference(self, ours: str, theirs: str = NONE) -> Interval | None:
        """The relative difference of the mean AUC of two sets of texts, with its paired bootstrap interval."""
        return relative_difference(self.auc[ours], self.auc[theirs])


def compare_texts(dataset: Dataset, sets: Mapping[str, EntityTexts], seed: int = 0) -> Downstream:
    """Train and test the model without texts and with each set of them.

    All models see the same users, items and negatives: only users and items that every set has a text for. Negatives
    are drawn by popularity, so that popularity alone tells little; never what the user took.

    Raises:
        ValueError: a set with the name of none; too few users have texts and a test item with one, or too few items.
    """
    if NONE in sets:
        raise ValueError(f"{NONE!r} stands for no texts; give the set another name")
    split = split_leave_one_out(dataset.interactions)
    ids, item_ids = dataset.interactions.user_ids, dataset.items.item_ids
    known = np.array([all(item in texts.items for texts in sets.values()) for item in item_ids])
    # Validation and test list the same users in the same order.
    number = split.test.histories.users
    told = np.array([all(ids[user] in texts.users for texts in sets.values()) for user in number.tolist()])
    kept = np.flatnonzero(told & known[split.validation.targets] & known[split.test.targets])
    if len(kept) < _LEAST_USERS or known.sum() <= _LEAST_USERS:
        raise ValueError(
            f"{len(kept)} users and {int(known.sum())} items have texts in every set; at least {_LEAST_USERS} users, "
            f"whose last two items have texts too, and {_LEAST_USERS + 1} items are needed"
        )
    users = number[kept]
    taken = csr_matrix(
        (np.ones(len(dataset.interactions.rows)), dataset.interactions.rows, dataset.interactions.offsets),
        shape=(len(ids), len(item_ids)),
    )
    weights = np.where(known, popularity(split, len(item_ids)) + 1.0, 0.0)
    rng = np.random.default_rng(seed)
    candidates = [
        _candidates(part.targets[kept], taken[users], weights, rng) for part in (split.validation, split.test)
    ]
    basics = _Basics(split.train, len(ids), len(item_ids), seed)
    plain = [basics.features(users, items) for items in candidates]

    auc = {NONE: _auc(*plain)}
    for name, texts in sets.items():
        user_topics, item_topics = _topics(
            [texts.users[ids[user]] for user in users.tolist()],
            [texts.items[item] if has else "" for item, has in zip(item_ids, known.tolist(), strict=True)],
            seed,
        )
        likeness = [user_topics[:, None] * item_topics[items] for items in candidates]
        with_text = [
            np.concatenate([base, each, each.sum(-1, keepdims=True)], -1)
            for base, each in zip(plain, likeness, strict=True)
        ]
        auc[name] = _auc(*with_text)
    return Downstream([ids[user] for user in users.tolist()], auc)


def _candidates(targets: np.ndarray, taken: csr_matrix, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [E, 1 + NEGATIVES]: each user's item, then negatives by `weights` [n] that `taken` [E, n] does not hold."""
    cumulative = np.cumsum(weights) / weights.sum()
    found = np.searchsorted(cumulative, rng.random((len(targets), NEGATIVES)), "right")
    rows = np.arange(len(targets))[:, None].repeat(NEGATIVES, 1)
    for _ in range(100):  # a user took a few of many items: a handful of rounds do
        wrong = np.asarray(taken[rows.ravel(), found.ravel()]).reshape(found.shape) > 0
        if not wrong.any():
            break
        found[wrong] = np.searchsorted(cumulative, rng.random(int(wrong.sum())), "right")
    return np.concatenate([targets[:, None].astype(np.int64), found], 1)


class _Basics:
    """The features of a user and an item without texts, from the training part."""

    def __init__(self, train: Sequences, n_users: int, n_items: int, seed: int) -> None:
        seen = csr_matrix((np.ones(len(train.rows)), train.rows, train.offsets), shape=(n_users, n_items))
        self._counts = np.asarray(seen.sum(0)).ravel()
        self._lengths = np.asarray(seen.sum(1)).ravel()
        # Popular items and active users would fill the factors otherwise.
        scaled = seen.multiply(1 / np.sqrt(np.maximum(self._lengths, 1))[:, None])
        scaled = scaled.multiply(1 / np.sqrt(np.maximum(self._counts, 1))[None]).tocsr()
        decomposition = TruncatedSVD(min(_FACTORS, n_items - 1), random_state=seed)
        self._users = decomposition.fit_transform(scaled)
        self._items = decomposition.components_.T

    def features(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float64 [E, C, 3] of users [E] and their candidates [E, C]."""
        fit = np.einsum("ef,ecf->ec", self._users[users], self._items[items])
        length = np.broadcast_to(np.log1p(self._lengths[users])[:, None], items.shape)
        return np.stack([np.log1p(self._counts[items]), length, fit], -1)


def _topics(users: Sequence[str], items: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts: float64 [E, d] and [n, d], unit rows; zero for an empty text.

    Latent semantic analysis of words and pairs of words: it needs no other model, whose taste would be measured along,
    and takes seconds on a CPU.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    weights = words.fit_transform([*users, *items])
    topics = make_pipeline(TruncatedSVD(min(_TOPICS, weights.shape[1] - 1), random_state=seed), Normalizer())
    encoded = topics.fit_transform(weights)
    return encoded[: len(users)], encoded[len(users) :]


def _auc(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Per-user AUC, float64 [E], of logistic regression. Features [E, C, F]; the first of the C candidates is right."""
    labels = np.zeros(train.shape[:2], bool)
    labels[:, 0] = True
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train.reshape(-1, train.shape[-1]), labels.ravel())
    scores = model.decision_function(test.reshape(-1, test.shape[-1])).reshape(test.shape[:2])
    right, others = scores[:, :1], scores[:, 1:]
    return (right > others).mean(1) + 0.5 * (right == others).mean(1)
