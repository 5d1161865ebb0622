"""Other engines behind the same ensemble answer what one of ONNX Runtime answers."""

from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import Dataset, sample_users, split_leave_one_out
from genrec_client import Recommendations, Recommender, RecommendRequest
from tests.near import assert_same_items
from tests.needs import needs_avx512, needs_vnni


@pytest.mark.parametrize(
    "deployment",
    [
        Deployment(engine="torch", precision="f32"),
        Deployment(threads=1, instances=2),
        pytest.param(Deployment(engine="openvino", precision="f32"), marks=needs_avx512),
        pytest.param(Deployment(engine="openvino", precision="f32", threads=1, instances=2), marks=needs_avx512),
    ],
)
def test_all_deployments_answer_the_same(
    bundle: Bundle, dataset: Dataset, recommender: Recommender, deployment: Deployment, tmp_path: Path
) -> None:
    for ours, theirs in answered(bundle, dataset, recommender, deployment, tmp_path):
        assert_same_items(ours, theirs)


@pytest.mark.parametrize(
    "deployment",
    [
        pytest.param(Deployment(precision="int8"), marks=needs_vnni),
        Deployment(engine="torch", device="cpu", precision="bf16", buckets="none"),
    ],
)
def test_a_lower_precision_keeps_the_best_items(
    bundle: Bundle, dataset: Dataset, recommender: Recommender, deployment: Deployment, tmp_path: Path
) -> None:
    pairs = answered(bundle, dataset, recommender, deployment, tmp_path)
    kept = [len({*ours.item_ids[:10]} & {*theirs.item_ids[:10]}) / 10 for ours, theirs in pairs]
    assert sum(kept) / len(kept) >= 0.95
    scores = [[[item.score for item in answer.items] for answer in side] for side in zip(*pairs, strict=True)]
    assert scores[0] != scores[1], "this ran in float32"


def answered(
    bundle: Bundle, dataset: Dataset, recommender: Recommender, deployment: Deployment, folder: Path
) -> list[tuple[Recommendations, Recommendations]]:
    """What a server of `deployment` answers to 40 users, each beside what `recommender` does."""
    histories, _ = sample_users(split_leave_one_out(dataset.interactions).test, 40)
    ids = bundle.catalog.item_ids.astype(object)
    requests = [RecommendRequest(ids[history].tolist(), top_k=20) for history in histories]
    expected = recommender.recommend_many(requests, concurrency=8, return_exceptions=False)
    with serve_bundle(bundle.path, deployment, log_path=folder / "log") as server:
        with Recommender(server.grpc_url, timeout_s=10.0) as client:
            answers = client.recommend_many(requests, concurrency=8, return_exceptions=False)
    return list(zip(answers, expected, strict=True))
