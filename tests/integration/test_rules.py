"""Rules of a shop through a real server: obeyed, explained, refused in words, on a catalogue that changes meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.bundle import Bundle
from genrec.catalog import Columns
from genrec.live.changes import Changes
from genrec.live.init import init_catalog
from genrec.live.store import CatalogStore
from genrec.pipeline import Pipeline
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec.serving.triton import TritonServer
from genrec_client import Recommendations, Recommender, RecommendRequest, Source
from tests.integration.conftest import Wire
from tests.near import assert_same_ranking

Item = dict[str, Any]


def items_of(bundle: Bundle) -> dict[str, Item]:
    """The attributes of every item."""
    catalog = bundle.catalog
    lists = {name: column.tolist() for name, column in catalog.columns.items()}
    ids = [item_id.decode() for item_id in catalog.item_ids.tolist()]
    return {item_id: {name: values[row] for name, values in lists.items()} for row, item_id in enumerate(ids)}


@pytest.fixture(scope="module")
def items(bundle: Bundle) -> dict[str, Item]:
    return items_of(bundle)


@pytest.fixture(scope="module")
def history(items: dict[str, Item]) -> list[str]:
    return [*items][10:16]


def test_every_item_of_the_answer_obeys_and_the_answer_is_full(
    recommender: Recommender, items: dict[str, Item], history: list[str]
) -> None:
    brand = next(item["brand"] for item in items.values())
    for where, holds in (
        ({"attribute": "price", "<": 20}, lambda item: item["price"] < 20),
        ({"attribute": "brand", "is": brand}, lambda item: item["brand"] == brand),
        ({"attribute": "markets", "in": ["fr"]}, lambda item: "fr" in item["markets"]),
        ({"not": {"attribute": "in_stock", "is": True}}, lambda item: item["in_stock"] is not True),
    ):
        left = [item_id for item_id, item in items.items() if holds(item) and item_id not in history]
        answer = recommender.recommend(history, top_k=10, rules={"where": where, "explain": True})
        assert len(answer.item_ids) == min(10, len(left)) > 0
        assert set(answer.item_ids) <= set(left)
        assert answer.explanation is not None
        assert abs(answer.explanation["allowed_items"] - sum(map(holds, items.values()))) <= 40  # a sample of 400


def test_requests_with_other_rules_do_not_disturb_each_other(
    recommender: Recommender, bundle: Bundle, items: dict[str, Item], history: list[str]
) -> None:
    brands = sorted({item["brand"] for item in items.values()})[:6]
    rules: list[dict[str, Any] | None] = [{"where": {"attribute": "brand", "is": brand}} for brand in brands]
    rules += [None, {"where": {"attribute": "price", ">=": 10}, "at_most": [{"attribute": "brand", "items": 1}]}]
    requests = [RecommendRequest(history[: 1 + at % 5], rules=rules[at % 8]) for at in range(64)]
    answers = recommender.recommend_many(requests, concurrency=16)
    with_pipeline = Pipeline.open(bundle, threads=1)
    for at, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        told = "" if request.rules is None else json.dumps(request.rules)
        alone = with_pipeline.recommend([list(request.history)], rules=told)[0]
        scores = np.array([item.score for item in answer.items], np.float32)
        assert_same_ranking(alone.item_ids, alone.scores, list(answer.item_ids), scores)
        if at % 8 < 6:
            assert {items[item_id]["brand"] for item_id in answer.item_ids} == {brands[at % 8]}
        if at % 8 == 7:
            own = [items[item_id]["brand"] for item_id in answer.item_ids]
            assert len(set(own)) == len(own)
    with_pipeline.close()


def test_boosts_move_items_and_leave_scores(
    recommender: Recommender, items: dict[str, Item], history: list[str]
) -> None:
    plain = recommender.recommend(history, top_k=20)
    score_of = {item.item_id: item.score for item in plain.items}
    last = plain.item_ids[-1]
    price = items[last]["price"]
    rules = {"boost": [{"where": {"attribute": "price", "is": price}, "add": 50}], "explain": True}
    boosted = recommender.recommend(history, top_k=20, rules=rules)
    assert items[boosted.item_ids[0]]["price"] == price
    assert boosted.explanation is not None and boosted.explanation["boosts"][0] == 50
    assert boosted.explanation["moved"] > 0
    for item in boosted.items:
        if item.item_id in score_of:
            assert item.score == pytest.approx(score_of[item.item_id], abs=1e-4)


def test_a_client_of_before_is_answered_as_before(wire: Wire, history: list[str]) -> None:
    """It names no rules, and the outputs that there were."""
    outputs = ["item_ids", "scores", "source", "counts", "version"]
    answer = wire.send(wire.ids("history", history), outputs=outputs)
    assert sorted(one.name for one in answer.outputs) == sorted(outputs)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('{"where": {"attribute": "colour", "is": "red"}}', "where.attribute: attribute 'colour' is unknown"),
        ('{"where": {"attribute": "price", "<": "cheap"}}', "where.<: 'cheap' is not a number"),
        ("not json", "is not readable as JSON"),
        (b"\xff\xfe", "is not readable as JSON"),
        ('{"deny": ["' + "x" * 70_000 + '"]}', "bytes; at most 65536 are accepted"),
    ],
)
def test_wrong_rules_are_refused(wire: Wire, history: list[str], rules: str | bytes, said: str) -> None:
    refusal = wire.refused(wire.ids("history", history), wire.ids("rules", [rules]))
    assert refusal.code == "INVALID_ARGUMENT" and said in refusal.message, refusal


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)), count=st.sampled_from([1, 2]))
def test_no_rules_end_in_an_internal_error(wire: Wire, history: list[str], text: bytes, count: int) -> None:
    try:
        wire.send(wire.ids("history", history), wire.ids("rules", [text] * count))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_deployment_holds_its_own_rules(bundle: Bundle, items: dict[str, Item], history: list[str]) -> None:
    own = {"where": {"attribute": "in_stock", "is": True}, "at_most": [{"attribute": "brand", "items": 2}]}
    deployment = Deployment(threads=1, timeout_ms=30_000, rules=json.dumps(own))
    with serve_bundle(bundle.path, deployment) as server, Recommender(server.grpc_url, timeout_s=30) as client:
        for rules in (None, {"where": {"attribute": "in_stock", "is": False}}, {"allow": [*items][:60]}):
            for given_history in (history, []):
                answer = client.recommend(given_history, top_k=10, rules=rules)
                assert all(items[item_id]["in_stock"] is True for item_id in answer.item_ids)
                brands = [items[item_id]["brand"] for item_id in answer.item_ids]
                assert all(brands.count(brand) <= 2 for brand in brands)
                if rules is None:
                    assert len(answer.item_ids) == 10
                elif "where" in rules:
                    assert not answer.item_ids
                else:
                    assert set(answer.item_ids) <= {*[*items][:60]} and answer.item_ids


@pytest.fixture(scope="module")
def live(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, CatalogStore]]:
    folder = tmp_path_factory.mktemp("live")
    init_catalog(bundle, str(folder / "store"))
    with serve_bundle(
        bundle.path,
        Deployment(threads=1, timeout_ms=2000),
        LiveCatalog(str(folder / "store"), folder / "published"),
        log_path=folder / "triton.log",
    ) as server:
        yield server, CatalogStore.open(str(folder / "store"))


def test_no_answer_breaks_a_rule_of_the_version_that_it_names(
    live: tuple[TritonServer, CatalogStore], bundle: Bundle, items: dict[str, Item], history: list[str]
) -> None:
    """Prices and stock change all the time; every answer is checked against the state of its own version."""
    server, store = live
    rng, ids, kinds = np.random.default_rng(0), [*items], dict(bundle.catalog.kinds)
    states = {0: {item_id: dict(item) for item_id, item in items.items()}}
    rules = {"where": {"all": [{"attribute": "price", "<": 30}, {"attribute": "in_stock", "is": True}]}}
    answers: list[Recommendations] = []
    stop = threading.Event()

    def ask(seed: int) -> None:
        asking = np.random.default_rng(seed)
        with Recommender(server.grpc_url, timeout_s=10) as client:
            while not stop.is_set():
                own = [ids[at] for at in asking.integers(0, len(ids), 5)]
                answers.append(client.recommend(own, top_k=10, rules=rules))

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, seed) for seed in range(2)]
        try:
            for version in range(1, 13):
                changed = rng.choice(len(ids), 60, replace=False)
                state = dict(states[version - 1])
                for at in changed.tolist():
                    price, in_stock = float(rng.choice([5, 25, 35, 99])), bool(rng.random() < 0.5)
                    state[ids[at]] = {**state[ids[at]], "price": price, "in_stock": in_stock}
                states[version] = state
                said = [state[ids[at]] for at in changed.tolist()]
                count = len(changed)
                store.commit(
                    Changes(
                        bundle.catalog.item_ids[changed],
                        np.zeros(count, bool),
                        np.full(count, -1),
                        np.full(count, -1),
                        np.full(count, -1, np.int8),
                        Columns.of_values(kinds, {name: [one[name] for one in said] for name in kinds}),
                        np.ones(count, bool),
                    ),
                    version - 1,
                    "a test",
                )
                time.sleep(0.3)
            deadline = time.monotonic() + 20
            while answers[-1].catalog_version != "12" and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            stop.set()
        for one in asked:
            one.result()
    assert {answer.catalog_version for answer in answers} >= {"0", "12"} and len(answers) > 50
    for answer in answers:
        state = states[int(answer.catalog_version)]
        for item_id in answer.item_ids:
            assert state[item_id]["price"] < 30 and state[item_id]["in_stock"] is True
        assert len(answer.item_ids) == 10
    drafted = [item.source is Source.DRAFTED for answer in answers for item in answer.items]
    assert np.mean(drafted) > 0.99
