"""Fits of the residual quantiser: reproducible, finer by level, and usable with fewer items than codes."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.catalog import QuantizerError
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.semantic_ids import fit_residual_kmeans, measure_fit, semantic_id_report


def clustered(n: int = 600, dim: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(12, dim))[rng.integers(0, 12, n)] + 0.2 * rng.normal(size=(n, dim))).astype(np.float32)


def test_every_level_brings_the_decoded_closer() -> None:
    embeddings = clustered()
    errors = []
    for levels in ((16,), (16, 16), (16, 16, 16)):
        quantizer = fit_residual_kmeans(embeddings, levels)
        decoded = quantizer.decode(quantizer.encode(embeddings))
        assert decoded.dtype == np.float32
        errors.append(float(np.square(decoded - embeddings).sum()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * float(np.square(embeddings - embeddings.mean(axis=0)).sum())


def test_fit_is_deterministic_and_leaves_its_input_alone() -> None:
    embeddings = clustered()
    before = embeddings.copy()
    one, two, other = (fit_residual_kmeans(embeddings, (8, 16), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(embeddings, before)
    for a, b in zip(one.codebooks, two.codebooks, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one.codebooks, other.codebooks, strict=True))
    assert one.levels == (8, 16) and one.dim == 16


@pytest.mark.parametrize("codes", [16, 64])
def test_the_error_is_that_of_items_that_were_not_fitted_on(codes: int) -> None:
    embeddings = clustered(5000)
    old, new = embeddings[:1500], embeddings[1500:]
    quantizer = fit_residual_kmeans(old, (codes,) * 2)
    fit = measure_fit(quantizer, old)
    assert fit is not None and fit == measure_fit(quantizer, old)
    later = quantizer.squared_errors(new, quantizer.encode(new)).mean()
    assert fit.error == pytest.approx(later, rel=0.1)
    assert fit.variance == pytest.approx(np.square(old - old.mean(axis=0)).sum() / len(old), rel=1e-5)


def test_the_error_of_many_items_a_code_needs_no_other_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = clustered(3000)
    quantizer = fit_residual_kmeans(embeddings, (16, 16))
    monkeypatch.setattr("genrec_builders.semantic_ids.fit_residual_kmeans", lambda *arguments: pytest.fail("fits"))
    fit = measure_fit(quantizer, embeddings)
    assert fit is not None
    assert fit.error == pytest.approx(
        quantizer.squared_errors(embeddings, quantizer.encode(embeddings)).mean(), rel=0.1
    )
    assert measure_fit(quantizer, embeddings[:9]) is None


def test_mini_batches_for_large_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec_builders.semantic_ids.FULL_KMEANS_ITEMS", 100)
    embeddings = clustered()
    one, two = (fit_residual_kmeans(embeddings, (16, 16)) for _ in range(2))
    for a, b in zip(one.codebooks, two.codebooks, strict=True):
        np.testing.assert_array_equal(a, b)
    assert semantic_id_report(one.encode(embeddings), one.levels).distinct > 60


def test_progress_is_told() -> None:
    calls: list[tuple[int, int]] = []
    fit_residual_kmeans(clustered(), (4, 4, 4), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "embeddings",
    [
        np.zeros((1, 3), dtype=np.float32),
        np.ones((50, 3), dtype=np.float32),
        np.repeat(np.eye(3, dtype=np.float32), 20, axis=0),
        np.array([[1e30, 0, 0], [1e-30, 0, 0]], dtype=np.float32),
        np.random.default_rng(0).normal(size=(9, 3)),
    ],
    ids=["one item", "all the same", "three points", "far apart", "fewer than codes, float64"],
)
def test_fewer_points_than_codes(embeddings: np.ndarray) -> None:
    quantizer = fit_residual_kmeans(embeddings, (16, 4))
    assert quantizer.levels == (16, 4)
    assert all(np.isfinite(book).all() for book in quantizer.codebooks)
    codes = quantizer.encode(embeddings)
    assert semantic_id_report(codes, quantizer.levels).distinct == len(np.unique(embeddings, axis=0))
    np.testing.assert_allclose(quantizer.decode(codes), embeddings, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("embeddings", "levels", "message"),
    [
        (np.zeros((0, 3), dtype=np.float32), (4,), "both at least 1"),
        (np.zeros(3, dtype=np.float32), (4,), "expected float"),
        (np.zeros((3, 3), dtype=np.int64), (4,), "int64"),
        (np.array([[0.0], [np.inf]], dtype=np.float32), (4,), "embedding 1 has values"),
        (np.array([[0.0], [1e300]]), (4,), "embedding 1 has values"),
        (np.zeros((3, 3), dtype=np.float32), (), "at least one"),
        (np.zeros((3, 3), dtype=np.float32), (4, 0), "at least 1 code"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_fit_refuses(embeddings: np.ndarray, levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(QuantizerError, match=message):
        fit_residual_kmeans(embeddings, levels)


def test_what_is_shared_and_used_is_counted() -> None:
    sids = np.array([[0, 1], [0, 1], [0, 2], [0, 1], [3, 3], [3, 3]], dtype=np.int32)
    report = semantic_id_report(sids, (4, 5))
    assert (report.items, report.distinct, report.colliding_share, report.largest_bucket) == (6, 3, 5 / 6, 3)
    assert report.codes_used == (2, 3)
    even = 1.5 * 2 ** (1 / 3)  # of 2/3 and 1/3: exp(H) = (3/2)^(2/3) 3^(1/3)
    assert report.perplexity == pytest.approx((even, 6 / (3**0.5 * 2 ** (1 / 3))))
    assert str(report) == (
        "2 levels of 4, 5 codes (2, 3 used, perplexity 2, 3); 3 distinct, 83.3% of the items share theirs, at most 3 "
        "items one"
    )
    every = np.stack(np.unravel_index(np.arange(20), (4, 5)), 1)
    assert semantic_id_report(every, (4, 5)).perplexity == pytest.approx((4, 5))
    with pytest.raises(QuantizerError, match="both at least 1"):
        semantic_id_report(sids[:0], (4, 5))


@pytest.mark.training
def test_demo_shop_buckets_stay_small() -> None:
    embeddings = make_demo_shop(n_users=1).items.embeddings
    assert embeddings is not None
    levels = (128, 128, 128)
    report = semantic_id_report(fit_residual_kmeans(embeddings, levels).encode(embeddings), levels)
    assert report.largest_bucket <= 8 and report.colliding_share < 0.2
