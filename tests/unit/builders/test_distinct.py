"""One semantic ID per item: nobody shares, and nobody moves farther than the nearest that was free."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genrec.catalog import QuantizerError, ResidualQuantizer
from genrec_builders.distinct import distinct_sids
from genrec_builders.semantic_ids import fit_residual_kmeans


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[ResidualQuantizer, np.ndarray]:
    """Codebooks and items of few different places, so that nearly all collide; at most as many as there are IDs."""
    levels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    whole = st.integers(-4, 4).map(np.float32)
    books = [draw(hnp.arrays(np.float32, (size, 2), elements=whole)) for size in levels]
    items = draw(st.integers(0, math.prod(levels)))
    return ResidualQuantizer(books), draw(hnp.arrays(np.float32, (items, 2), elements=whole))


@given(catalogues())
def test_no_two_items_share(catalogue: tuple[ResidualQuantizer, np.ndarray]) -> None:
    quantizer, embeddings = catalogue
    sids = quantizer.encode(embeddings)
    before = sids.copy()
    found = distinct_sids(quantizer, embeddings, sids)
    np.testing.assert_array_equal(sids, before)
    assert found.dtype == np.int32 and found.shape == sids.shape
    assert len(np.unique(found, axis=0)) == len(found)
    assert (found >= 0).all() and (found < np.array(quantizer.levels)).all()
    np.testing.assert_array_equal(found, distinct_sids(quantizer, embeddings, sids))
    # Of each semantic ID that was taken, one item still has it, unless its prefix held too many.
    counts = np.unique(sids[:, :-1], axis=0, return_counts=True)[1]
    if not len(sids) or counts.max() <= quantizer.levels[-1]:
        assert {tuple(sid) for sid in sids.tolist()} <= {tuple(sid) for sid in found.tolist()}
        np.testing.assert_array_equal(found[:, :-1], sids[:, :-1])  # so only the last code moves


@given(catalogues())
def test_the_last_code_is_the_nearest_that_was_free(catalogue: tuple[ResidualQuantizer, np.ndarray]) -> None:
    """One level, item by item: the nearest item of a code keeps it; the others are served by their distance."""
    quantizer, embeddings = catalogue
    book = quantizer.codebooks[0]
    quantizer, embeddings = ResidualQuantizer([book]), embeddings[: len(book)]
    distances = np.square(embeddings[:, None].astype(float) - book).sum(axis=2)
    codes = quantizer.encode(embeddings)[:, 0]
    keeps = {code: min(np.flatnonzero(codes == code), key=lambda row: distances[row, code]) for code in set(codes)}
    expected = {row: code for code, row in keeps.items()}
    waiting = [row for row in range(len(codes)) if row not in expected]
    while waiting:
        free = [code for code in range(len(book)) if code not in expected.values()]
        wanted = {row: min(free, key=lambda code: distances[row, code]) for row in waiting}
        for code in set(wanted.values()):
            row = min((row for row in waiting if wanted[row] == code), key=lambda row: distances[row, code])
            expected[row] = code
        waiting = [row for row in waiting if row not in expected]
    found = distinct_sids(quantizer, embeddings, codes[:, None])
    assert dict(enumerate(found[:, 0].tolist())) == expected


def test_a_full_prefix_sends_its_farthest_items_to_the_next(rng: np.random.Generator) -> None:
    """Where nothing tells 200 items apart, they fill the nearest prefixes and leave the others alone."""
    known = rng.normal(size=(300, 8)).astype(np.float32)
    embeddings = np.concatenate([known, np.zeros((200, 8), np.float32)])
    quantizer = fit_residual_kmeans(embeddings, (16, 8, 8))
    sids = quantizer.encode(embeddings)
    found = distinct_sids(quantizer, embeddings, sids)
    assert len(np.unique(sids[300:], axis=0)) == 1 and len(np.unique(found, axis=0)) == 500
    filled = np.isin(sids[:300, 0], found[300:, 0])
    assert 0 < filled.sum() < 150
    np.testing.assert_array_equal(found[:300][~filled], distinct_sids(quantizer, known, sids[:300])[~filled])


def test_more_items_than_semantic_ids_are_refused() -> None:
    quantizer = ResidualQuantizer([np.zeros((2, 1), np.float32)] * 2)
    with pytest.raises(QuantizerError, match="5 items do not fit into 4 semantic IDs; give levels with more codes"):
        distinct_sids(quantizer, np.zeros((5, 1), np.float32), np.zeros((5, 2), np.int32))
