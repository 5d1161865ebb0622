"""No item outside the live catalogue, whatever the drafts are: with masks, without, and with masks of yesterday.

By default, 10,000 requests of each kind go through engine and verifier in this process and 1,000 through a server; all
10,000 go through servers with `pytest -m slow tests/integration/test_live_items.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import GOLDEN, MASKS, Bundle, seal_bundle
from genrec.catalog import Catalog, ItemIndex
from genrec.golden import write_golden
from genrec.pipeline import Pipeline
from genrec.prompt import Request
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonServer
from genrec_builders.build import write_catalog
from genrec_client import Recommender, RecommendRequest

REQUESTS = 10_000
BATCH = 32
KINDS = ("masked", "unmasked", "stale masks")


def bundle_with_stale_masks(bundle: Bundle, path: Path) -> Bundle:
    """A copy of `bundle` where 30 % of the items are gone, but the prefixes that drafting keeps to still know them."""
    shutil.copytree(bundle.path, path)
    catalog = bundle.catalog
    available = np.random.default_rng(9).random(len(catalog)) >= 0.3
    ids = [item.decode() for item in catalog.item_ids.tolist()]
    smaller = Catalog.build(ids, catalog.sids, catalog.popularity, available)
    history = catalog.rows_of(bundle.golden["history"].astype(object))
    write_catalog(path, bundle.space, bundle.layout, smaller, bundle.manifest.beam_width, history)
    shutil.rmtree(path / MASKS)
    shutil.copytree(bundle.path / MASKS, path / MASKS)
    fields = bundle.manifest.model_dump(exclude={"format_version", "files"})
    fields["catalog"] = {"version": 2, "items": len(catalog), "available": int(available.sum())}
    seal_bundle(path, **fields)
    # Once more, now that the engine drafts with the stale prefixes.
    stale = Bundle(path)
    write_golden(path / GOLDEN, history, Pipeline.open(stale))
    seal_bundle(path, **fields)
    return Bundle(path)


@dataclass
class Oracle:
    """Judges answers by two plain collections made from the dataset: live ids, and live ids of each semantic ID."""

    live: set[str]
    live_of_sid: dict[tuple, set[str]]
    shop: Any
    answers: int = 0
    drafted: int = 0
    valid: int = 0
    filled: int = 0

    @classmethod
    def of(cls, shop: Any, gone: set[str]) -> Oracle:
        live_of_sid: dict[tuple, set[str]] = {}
        for item in shop.ids:
            live_of_sid.setdefault(shop.sid_of[item], set())
            if item not in gone:
                live_of_sid[shop.sid_of[item]].add(item)
        return cls(set(shop.ids) - gone, live_of_sid, shop)

    def judge(
        self, request: RecommendRequest, items: list[str], source: list[int], scores: list[float], counts: list[int]
    ) -> None:
        assert request.top_k == len(items) == len(set(items))
        assert not set(items) - self.live, "an item that is not live"
        blocked = {*request.exclude, *(() if request.allow_history else request.history)}
        assert not set(items) & blocked
        drafted = [item for item, origin in zip(items, source, strict=True) if origin == 0]
        assert items[: len(drafted)] == drafted and len(items) - len(drafted) == counts[3]
        # All live items of a drafted semantic ID come, except that the answer may end within the last one.
        cut = self.shop.sid_of[drafted[-1]] if drafted and not counts[3] else None
        for sid in {self.shop.sid_of[item] for item in drafted} - {cut}:
            assert self.live_of_sid[sid] - blocked <= set(drafted)
        assert all(np.isfinite(scores)) and 0 <= counts[1] <= counts[0] <= 64
        self.answers += 1
        self.drafted += counts[0]
        self.valid += counts[1]
        self.filled += counts[3]

    def conclude(self, kind: str, answers: int) -> None:
        """Whether the run was what its name says."""
        assert self.answers == answers
        if kind == "masked":
            assert self.valid == self.drafted > 0, "with fresh masks every draft is an item"
        else:
            assert 0 < self.valid < 0.95 * self.drafted, f"{kind}: hardly any draft was wrong, so nothing was tested"


def random_requests(shop: Any, count: int) -> Iterator[RecommendRequest]:
    """Histories that nobody has: any items, gone ones too, of any length."""
    rng = np.random.default_rng(10)
    ids = np.array(shop.ids)
    for _ in range(count):
        yield RecommendRequest(
            rng.choice(ids, int(rng.integers(0, 40))).tolist(),
            top_k=int(rng.integers(1, 31)),
            exclude=rng.choice(ids, int(rng.integers(0, 20))).tolist(),
            allow_history=bool(rng.integers(2)),
        )


@pytest.fixture(scope="module")
def stale(bundle: Bundle, scratch: Path) -> Bundle:
    return bundle_with_stale_masks(bundle, scratch / "stale")


@pytest.fixture
def case(request: pytest.FixtureRequest, bundle: Bundle, stale: Bundle, shop: Any) -> tuple[str, Bundle, Oracle]:
    """The kind of run, its bundle, and the oracle for it."""
    if request.param != "stale masks":
        return request.param, bundle, Oracle.of(shop, set())
    gone = {shop.ids[row] for row in np.flatnonzero(~stale.catalog.available).tolist()}
    assert 0.2 < len(gone) / len(shop.ids) < 0.4
    return request.param, stale, Oracle.of(shop, gone)


def test_the_stale_bundle_is_sound_but_for_its_masks(stale: Bundle) -> None:
    stale.check()
    fresh = ItemIndex.build(stale.space, stale.catalog)
    assert np.array_equal(stale.index.rows, fresh.rows)
    gone = np.setdiff1d(stale.space.encode(stale.catalog.sids), stale.space.encode(stale.catalog.sids[fresh.rows]))
    assert gone.size and stale.masks.allows(gone).all()


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_in_process(case: tuple[str, Bundle, Oracle], shop: Any) -> None:
    kind, bundle, oracle = case
    pipeline = Pipeline.open(bundle, threads=1)

    def encoded(items: list[str]) -> np.ndarray:
        return np.array([item.encode() for item in items], object)

    asked = list(random_requests(shop, REQUESTS))
    for start in range(0, REQUESTS, BATCH):
        batch = asked[start : start + BATCH]
        answers = pipeline.answer(
            [Request(encoded(one.history), encoded(one.exclude), one.top_k, one.allow_history) for one in batch],
            masked=kind != "unmasked",
        )
        for request, answer in zip(batch, answers, strict=True):
            counts = [answer.drafted, answer.valid, answer.unknown, answer.filled]
            oracle.judge(request, answer.item_ids, answer.source.tolist(), answer.scores.tolist(), counts)
    oracle.conclude(kind, REQUESTS)


@pytest.mark.parametrize("case", KINDS, indirect=True)
@pytest.mark.parametrize("count", [1000, pytest.param(REQUESTS, marks=pytest.mark.slow)])
def test_through_a_server(
    case: tuple[str, Bundle, Oracle],
    count: int,
    server: TritonServer,
    deployment: Deployment,
    shop: Any,
    tmp_path: Path,
) -> None:
    kind, bundle, oracle = case
    with ExitStack() as stack:
        if kind != "masked":  # the shared server has masks
            deployment = replace(deployment, masked=kind != "unmasked")
            server = stack.enter_context(serve_bundle(bundle.path, deployment, log_path=tmp_path / "log"))
        client = stack.enter_context(Recommender(server.grpc_url, timeout_s=30.0))
        asked = list(random_requests(shop, count))
        answers = client.recommend_many(asked, concurrency=32, return_exceptions=False)
    for request, answer in zip(asked, answers, strict=True):
        assert answer.catalog_version == str(bundle.manifest.catalog.version)
        oracle.judge(
            request,
            list(answer.item_ids),
            [int(item.source) for item in answer.items],
            [item.score for item in answer.items],
            [answer.drafted, answer.valid, answer.unknown_history, answer.filled],
        )
    oracle.conclude(kind, count)
