"""The product in process: `Pipeline` answers as its parts do, one request or many, and refuses what serving refuses."""

from __future__ import annotations

import numpy as np
import pytest

from genrec.bundle import Bundle, BundleError
from genrec.errors import InvalidRequest
from genrec.pipeline import Pipeline, Recommendation
from genrec.prompt import Request
from genrec.verifier import FALLBACK, FALLBACK_SCORE
from tests.near import assert_same_ranking


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline.open(bundle.path, threads=1)


def ids_of(bundle: Bundle, rows: np.ndarray) -> list[str]:
    return [item_id.decode() for item_id in bundle.catalog.item_ids[rows].tolist()]


def assert_same(one: Recommendation, other: Recommendation) -> None:
    ours, theirs = ((a.drafted, a.valid, a.unknown, a.filled) for a in (one, other))
    assert ours == theirs
    assert_same_ranking(one.item_ids, one.scores, other.item_ids, other.scores)


def test_a_batch_answers_as_each_request_alone(pipeline: Pipeline, bundle: Bundle, rng: np.random.Generator) -> None:
    items = len(bundle.catalog)
    histories = [ids_of(bundle, rng.integers(0, items, rng.integers(1, 40))) for _ in range(20)]
    together = pipeline.recommend(histories, top_k=7)
    assert len(together) == 20
    for history, answer in zip(histories, together, strict=True):
        assert len(set(answer.item_ids)) == 7 and not set(answer.item_ids) & set(history)
        assert (np.diff(answer.scores) <= 0).all() and answer.drafted >= answer.valid > 0
        assert_same(pipeline.recommend([history], top_k=7)[0], answer)


def test_the_golden_history_gives_the_golden_items(pipeline: Pipeline, bundle: Bundle) -> None:
    history = [item_id.decode() for item_id in bundle.golden["history"].tolist()]
    answer = pipeline.recommend([history], top_k=10)[0]
    expected = [item_id.decode() for item_id in bundle.golden["items"].tolist()]
    scores = dict(zip(bundle.golden["codes"].tolist(), bundle.golden["scores"].tolist(), strict=True))
    codes = bundle.space.encode(bundle.catalog.sids[bundle.catalog.rows_of(bundle.golden["items"].astype(object))])
    assert_same_ranking(answer.item_ids, answer.scores, expected, [scores[code] for code in codes.tolist()])


def test_what_is_excluded_stays_out_and_a_history_may_come_back(pipeline: Pipeline, bundle: Bundle) -> None:
    history = ids_of(bundle, np.arange(6))
    free = pipeline.recommend([history], top_k=20, allow_history=True)[0]
    without = pipeline.recommend([history], top_k=20, allow_history=True, exclude=free.item_ids[:5])[0]
    assert without.item_ids[:15] == free.item_ids[5:]


def test_nobody_known_gets_the_popular_items(pipeline: Pipeline, bundle: Bundle) -> None:
    for history, unknown in (([], 0), (["no such item", "nor this"], 2)):
        answer = pipeline.recommend([history], top_k=5)[0]
        assert answer.item_ids == ids_of(bundle, bundle.catalog.popular_rows[:5])
        assert (answer.source == FALLBACK).all() and (answer.scores == FALLBACK_SCORE).all()
        assert (answer.drafted, answer.valid, answer.unknown, answer.filled) == (0, 0, unknown, 5)


def test_no_request_is_no_answer(pipeline: Pipeline) -> None:
    assert pipeline.recommend([]) == []


def test_what_serving_refuses_is_refused(pipeline: Pipeline, bundle: Bundle) -> None:
    limit = bundle.manifest.limits.top_k
    with pytest.raises(InvalidRequest, match=rf"top_k is {limit + 1}; it must be 1 to {limit}"):
        pipeline.recommend([[]], top_k=limit + 1)
    with pytest.raises(InvalidRequest, match="leave the query out"):
        pipeline.recommend([[]], queries=["a guitar"])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pipeline.recommend([[], []], queries=["one"])


def test_requests_of_one_batch_may_differ(pipeline: Pipeline, bundle: Bundle) -> None:
    known = bundle.catalog.item_ids.astype(object)
    requests = [Request(known[:4], known[:0], top_k=3), Request(known[4:9], known[9:12], top_k=8, allow_history=True)]
    answers = pipeline.answer(requests)
    assert [len(answer.item_ids) for answer in answers] == [3, 8]
    for request, answer in zip(requests, answers, strict=True):
        assert_same(pipeline.answer([request])[0], answer)


def test_text_queries_change_the_answer(text_bundle: Bundle) -> None:
    pipeline = Pipeline.open(text_bundle, threads=1)
    history = ids_of(text_bundle, np.arange(3))
    with_query, without = pipeline.recommend([history, history], queries=["vellum notebook", ""])
    assert with_query.item_ids != without.item_ids
    alone = pipeline.recommend([[]], queries=["vellum notebook"])[0]
    assert alone.drafted > 0 and not alone.filled


def test_a_missing_bundle_is_named(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"nowhere/manifest\.json: is missing"):
        Pipeline.open(tmp_path / "nowhere")
