"""The rendered model repository, and what a deployment may not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment, render_repository


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
    Deployment(engine="openvino", threads=1, instances=2)


def test_only_an_engine_with_a_choice_takes_a_precision(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="precision 'bf16' with engine tensorrt_llm, which has no choice: leave it at auto, or choose of onnx",
    ):
        Deployment(engine="tensorrt_llm", precision="bf16")
    deployment = Deployment(engine="openvino", precision="bf16")
    config = (render_repository(bundle, tmp_path / "models", deployment) / "backbone" / "config.pbtxt").read_text()
    assert '"bf16"' in config and '"openvino"' in config


def test_a_device_and_buckets_are_for_torch_alone(bundle: Bundle, tmp_path: Path) -> None:
    for options in ({"device": "cuda"}, {"buckets": "none"}):
        (name,) = options
        with pytest.raises(
            ValueError, match=f"{name} is {options[name]} with engine onnx; only torch engines have one"
        ):
            Deployment(**options)  # type: ignore[arg-type]
    deployment = Deployment(engine="torch", device="cpu", buckets="none", precision="bf16", max_batch_size=4)
    config = (render_repository(bundle, tmp_path / "models", deployment) / "backbone" / "config.pbtxt").read_text()
    assert all(f'"{value}"' in config for value in ("torch", "cpu", "none", "bf16"))


def test_buckets_have_to_hold_a_deployments_batches(bundle: Bundle, tmp_path: Path) -> None:
    for buckets in ("1,4x64,640", "8x640", "1,2,8x32"):
        with pytest.raises(ValueError, match=r"may be 16 \(max-batch-size\) of 64 \(the bundle's longest prompt\)"):
            render_repository(bundle, tmp_path / "models", Deployment(engine="torch", buckets=buckets))
    assert not (tmp_path / "models").exists()
    render_repository(bundle, tmp_path / "models", Deployment(engine="torch", buckets="1,16x64"))


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ValueError, match="engine 'tpu' is unknown; use one of onnx, openvino, torch, tensorrt_llm"):
        Deployment(engine="tpu")
