"""The client for asyncio on a real server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from genrec.serving.triton import TritonServer
from genrec_client import AsyncRecommender, InvalidRequest, Recommendations, Recommender, RecommendRequest, Statistics
from tests.near import assert_same_items

README = Path(__file__).parents[2] / "client" / "README.md"


def test_answers_are_those_of_the_other_client(server: TritonServer, recommender: Recommender, shop: Any) -> None:
    requests = [RecommendRequest(user, top_k=10, exclude=user[:1]) for user in shop.users[:50]]
    expected = recommender.recommend_many(requests, return_exceptions=False)

    async def main() -> list[Recommendations]:
        async with AsyncRecommender(server.grpc_url, timeout_s=30.0) as asking:
            assert [address.ready for address in await asking.readiness()] == [True]
            return await asking.recommend_many(requests, concurrency=16, return_exceptions=False)

    got = asyncio.run(main())
    assert len(got) == len(expected) == 50
    for ours, theirs in zip(got, expected, strict=True):
        assert_same_items(ours, theirs)
        assert (ours.valid, ours.bundle_version) == (theirs.valid, theirs.bundle_version)


def test_the_server_goes_on_after_cancelled_and_refused_requests(server: TritonServer, shop: Any) -> None:
    async def main() -> Statistics:
        async with AsyncRecommender(server.grpc_url, timeout_s=30.0) as asking:
            tasks = [asyncio.create_task(asking.recommend(user)) for user in shop.users[:20]]
            await asyncio.sleep(0.002)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in ended} <= {asyncio.CancelledError, Recommendations}
            with pytest.raises(InvalidRequest, match="top_k"):
                await asking.recommend(shop.users[0], top_k=0)
            assert len((await asking.recommend(shop.users[0], top_k=5)).items) == 5
            return asking.statistics

    statistics = asyncio.run(main())
    assert (statistics.requests, statistics.failures, statistics.retries) == (22, 1, 0)
    assert 0 < statistics.cancelled <= 20


def test_the_readmes_snippet(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.S | re.M)
    (snippet,) = [code for code in snippets if "AsyncRecommender" in code]
    arguments = '["pod-a:8001", "pod-b:8001"], timeout_s=0.2'
    assert arguments in snippet
    exec(snippet.replace(arguments, f'"{server.grpc_url}", timeout_s=30'), {})
    assert "Statistics(requests=12, retries=0, failures=0" in capsys.readouterr().out
