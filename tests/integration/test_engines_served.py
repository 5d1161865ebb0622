"""Other engines behind the same ensemble answer what one of ONNX Runtime answers."""

from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment, render_repository
from genrec.serving.serve import serve_bundle
from genrec_builders.data import Dataset, sample_users, split_leave_one_out
from genrec_client import Recommender, RecommendRequest

DEPLOYMENTS = (Deployment(), Deployment(engine="torch"), Deployment(threads=1, instances=2))


def test_all_deployments_answer_the_same(bundle: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    histories, _ = sample_users(split_leave_one_out(dataset.interactions).test, 40)
    ids = bundle.catalog.item_ids.astype(object)
    requests = [RecommendRequest(ids[history].tolist(), top_k=20) for history in histories]
    answers = []
    for deployment in DEPLOYMENTS:
        with serve_bundle(bundle.path, deployment, log_path=tmp_path / "log") as server:
            with Recommender(server.grpc_url, timeout_s=10.0) as client:
                answers.append(client.recommend_many(requests, concurrency=8, return_exceptions=False))
    for deployment, others in zip(DEPLOYMENTS[1:], answers[1:], strict=True):
        same = 0
        for user, (one, other) in enumerate(zip(answers[0], others, strict=True)):
            scores = ([item.score for item in items] for items in (one.items, other.items))
            np.testing.assert_allclose(*scores, atol=1e-4, err_msg=f"user {user}, {deployment}")
            same += one.item_ids == other.item_ids
        assert same >= 38, f"{deployment}: more lists differ than near ties explain"


def test_only_the_backbone_has_instances(bundle: Bundle, tmp_path: Path) -> None:
    models = render_repository(bundle, tmp_path / "models", Deployment(threads=1, instances=3))
    counts = {path.parent.name: path.read_text().count("count: 3") for path in models.glob("*/config.pbtxt")}
    assert counts == {"preprocessing": 0, "backbone": 1, "verifier": 0, "recommend": 0}


@pytest.mark.parametrize(
    "refused", [{"instances": 0}, {"instances": 2}, {"instances": 2, "threads": 1, "engine": "tensorrt_llm"}]
)
def test_instances_need_threads_of_their_own(refused: dict) -> None:
    with pytest.raises(ValueError, match=f"instances is {refused['instances']}"):
        Deployment(**refused)
