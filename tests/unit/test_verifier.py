import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.catalog import Catalog, ItemIndex, SemanticIdSpace
from genrec.verifier import DRAFTED, FALLBACK, FALLBACK_SCORE, Verifier

SPACE = SemanticIdSpace((6, 6, 6))


def oracle(catalog: Catalog, codes: np.ndarray, scores: np.ndarray, blocked: np.ndarray, top_k: int) -> list[tuple]:
    """The rules of the wire contract, one item at a time."""
    by_popularity = sorted(np.flatnonzero(catalog.available), key=lambda row: (-catalog.popularity[row], row))
    code_of = SPACE.encode(catalog.sids)
    taken = set(blocked.tolist())
    out = []
    for code, score in zip(codes.tolist(), scores.tolist(), strict=True):
        for row in by_popularity if np.isfinite(score) else []:
            if code_of[row] == code and row not in taken:
                taken.add(row)
                out.append((row, score, DRAFTED))
    out = out[:top_k]
    taken = set(blocked.tolist()) | {row for row, _, _ in out}
    for row in by_popularity:
        if len(out) < top_k and row not in taken:
            out.append((row, float(FALLBACK_SCORE), FALLBACK))
    return out


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 150),
    batch=st.integers(1, 5),
    width=st.integers(1, 60),
    dead=st.floats(0, 1),
    repeats=st.booleans(),
)
def test_agrees_with_the_rules_taken_one_by_one(
    seed: int, items: int, batch: int, width: int, dead: float, repeats: bool
) -> None:
    rng = np.random.default_rng(seed)
    available = rng.random(items) < 0.7
    available[rng.integers(items)] = True
    sids = rng.integers(0, SPACE.levels, (items, 3))
    catalog = Catalog.build([str(i) for i in range(items)], sids, rng.integers(0, 5, items), available)
    verifier = Verifier(catalog, ItemIndex.build(SPACE, catalog))
    pool = np.concatenate([SPACE.encode(sids), rng.integers(0, SPACE.size, items)])
    if repeats:  # a few codes, each of them often: nothing else makes the first drafts hold too few items
        pool = rng.choice(pool, rng.integers(1, 12))
    codes = (
        rng.choice(pool, (batch, width))
        if repeats
        else np.stack([rng.permutation(SPACE.size)[:width] for _ in range(batch)])
    )
    scores = -np.sort(rng.exponential(size=(batch, width)).astype(np.float32), axis=1)
    scores[rng.random((batch, width)) < dead] = -np.inf
    blocked = [rng.integers(0, items, rng.integers(0, 20)).astype(np.int32) for _ in range(batch)]
    top_k = rng.integers(1, 40, batch)

    result = verifier.verify(codes, scores, blocked, top_k)

    for b in range(batch):
        part = slice(result.offsets[b], result.offsets[b + 1])
        got = zip(result.rows[part].tolist(), result.scores[part].tolist(), result.source[part].tolist(), strict=True)
        assert list(got) == oracle(catalog, codes[b], scores[b], blocked[b], int(top_k[b]))
        live = set(SPACE.encode(sids[available]).tolist())
        finite = np.isfinite(scores[b])
        assert result.drafted[b] == finite.sum()
        assert result.valid[b] == sum(code in live for code in codes[b][finite].tolist())
        assert result.filled[b] == (result.source[part] == FALLBACK).sum()
    assert np.isfinite(result.scores).all()
