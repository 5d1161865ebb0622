"""A bundle with votes through a real server: the answers of the pipeline, on its own catalogue and on a live one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.live.changes import Changes
from genrec.live.init import init_catalog
from genrec.live.store import CatalogStore
from genrec.pipeline import Pipeline
from genrec.serving.repository import Deployment
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec_client import Recommender, RecommendRequest, Source
from tests.near import assert_same_ranking


@dataclass
class Served:
    client: Recommender
    store: CatalogStore | None


@pytest.fixture(scope="module", params=["own catalogue", "live catalogue"])
def served(
    request: pytest.FixtureRequest, voting_bundle: Bundle, deployment: Deployment, tmp_path_factory: Any
) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("votes")
    live = store = None
    if request.param == "live catalogue":
        init_catalog(voting_bundle, str(folder / "store"))
        store = CatalogStore.open(str(folder / "store"))
        live = LiveCatalog(str(folder / "store"), folder / "published")
    log = folder / "triton.log"
    with (
        serve_bundle(voting_bundle.path, deployment, live, log_path=log) as server,
        Recommender(server.grpc_url, timeout_s=30.0) as client,
    ):
        yield Served(client, store)


def test_answers_are_the_pipelines(served: Served, voting_bundle: Bundle, shop: Any) -> None:
    pipeline = Pipeline.open(voting_bundle)
    rng = np.random.default_rng(3)
    ids = [*shop.ids, "gone"]
    histories = [*shop.users[:60], [], *(rng.choice(ids, rng.integers(0, 40)).tolist() for _ in range(60))]
    voted = 0
    for options in ({}, {"allow_history": True}, {"rules": json.dumps({"deny": shop.popular[:1], "explain": True})}):
        requests = [RecommendRequest(history, top_k=20, **options) for history in histories]
        answers = served.client.recommend_many(requests, concurrency=8, return_exceptions=False)
        here = pipeline.recommend(histories, top_k=20, **options)
        for ours, theirs in zip(here, answers, strict=True):
            assert_same_ranking(ours.item_ids, ours.scores, theirs.item_ids, [item.score for item in theirs.items])
            assert (ours.drafted, ours.valid, ours.filled) == (theirs.drafted, theirs.valid, theirs.filled)
            source = {item.item_id: item.source for item in theirs.items}
            own = zip(ours.item_ids, ours.source.tolist(), strict=True)
            others = [item for item, where in own if source.get(item) != where]
            assert len(others) <= 1  # what nearly ties at the end of the list
            voted += sum(own == Source.VOTED for own in source.values())
    assert voted > 50


@pytest.mark.parametrize("served", ["live catalogue"], indirect=True, scope="module")
def test_what_is_gone_is_not_voted_for_and_what_is_new_is_drafted(
    served: Served, voting_bundle: Bundle, shop: Any
) -> None:
    assert served.store is not None
    history = next(
        user
        for user in shop.users
        if any(item.source == Source.VOTED for item in served.client.recommend(user, top_k=20).items)
    )
    before = served.client.recommend(history, top_k=20)
    voted = next(item.item_id for item in before.items if item.source == Source.VOTED)
    drafted = next(item.item_id for item in before.items if item.source == Source.DRAFTED)
    row = voting_bundle.catalog.rows_of(np.array([drafted.encode()], object))[0]
    code = int(voting_bundle.space.encode(voting_bundle.catalog.sids[row]))
    changes = Changes(
        np.array([b"brand-new", voted.encode()]),
        np.array([False, True]),
        np.array([code, -1], np.int64),
        np.array([10**6, -1]),
        np.array([1, -1], np.int8),
    )
    served.store.commit(changes, 0, "a test")
    waited_until = time.monotonic() + 30
    while (after := served.client.recommend(history, top_k=20)).catalog_version == before.catalog_version:
        assert time.monotonic() < waited_until
    assert voted not in after.item_ids
    allowed = served.client.recommend(history, top_k=2, rules=json.dumps({"allow": ["brand-new", drafted]}))
    new, old = sorted(allowed.items, key=lambda item: item.item_id)
    assert (new.item_id, new.source) == ("brand-new", Source.DRAFTED)
    assert new.score == pytest.approx(old.score)  # one draft, and the other one's votes are all that there are
