"""A public form of checkpoint behind a real Triton: with item markers, biases and an output head of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.pipeline import Pipeline
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.build import build_bundle
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_client import Recommender
from tests.checkpoints import EXAMPLES
from tests.near import assert_same_ranking


@pytest.mark.training
def test_a_checkpoint_with_item_markers_is_served(tiny_build: Any, deployment: Deployment, tmp_path: Path) -> None:
    config, track = tiny_build
    EXAMPLES["openonerec"](tmp_path / "openonerec")
    shop = make_demo_shop(n_items=200, n_users=60)
    config = replace(
        config,
        checkpoint=tmp_path / "openonerec",
        sid_tokens=("<s_a_{}>", "<s_b_{}>", "<s_c_{}>"),
        item_markers=("<|sid_begin|>", "<|sid_end|>"),
        training=replace(config.training, epochs=1),
        evaluate_users=5,
    )
    build_bundle(shop, tmp_path / "bundle", config, track)
    here = Pipeline.open(tmp_path / "bundle")
    with serve_bundle(tmp_path / "bundle", deployment, log_path=tmp_path / "triton.log") as server:
        with Recommender(server.grpc_url, timeout_s=30.0) as recommender:
            for history in (shop.items.item_ids[:1], shop.items.item_ids[5:30]):
                ours, served = here.recommend([history], top_k=10)[0], recommender.recommend(history, top_k=10)
                ids = [item.item_id for item in served.items]
                scores = np.array([item.score for item in served.items])
                assert_same_ranking(ids, scores, list(ours.item_ids), np.asarray(ours.scores))
