"""What `genrec export-tensorrt-llm` writes: for either generation of transformers, sealed, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig
from typer.testing import CliRunner

from genrec.bundle import CHECKPOINT, TENSORRT_LLM, Bundle
from genrec.bundle.checkpoint_shapes import safetensors_shapes
from genrec.cli.main import app
from genrec.engines.tensorrt_llm.contract import DTYPES, KERNELS, LLM_ARGUMENTS, Kernels
from genrec_builders.config import BackboneShape
from genrec_builders.export.tensorrt_llm.export import (
    TensorRtLlmConfig,
    _configuration,
    export_tensorrt_llm,
    require_kernels,
)


@pytest.fixture
def narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the tests' bundles, whose heads are as narrow as no kernel takes them."""
    monkeypatch.setitem(KERNELS, "qwen3", Kernels((8,), DTYPES))


def test_the_folder_is_part_of_a_sealed_bundle(exported: Bundle, bundle: Bundle) -> None:
    exported.check()
    names = {name for name in exported.manifest.files if name.startswith(TENSORRT_LLM)}
    assert names == {f"{TENSORRT_LLM}/{file}" for file in ("config.json", "model.safetensors", LLM_ARGUMENTS)}
    assert exported.manifest.bundle_version == f"{bundle.manifest.bundle_version}-trtllm"
    assert exported.manifest.prompt == bundle.manifest.prompt
    (exported.path / TENSORRT_LLM / "../../index").resolve(strict=True)


def test_both_generations_of_transformers_read_the_configuration(exported: Bundle) -> None:
    folder = exported.path / TENSORRT_LLM
    raw = json.loads((folder / "config.json").read_text())
    assert raw["architectures"] == ["NezhaQwen3ForCausalLM"]
    assert raw["dtype"] == raw["torch_dtype"] == "float32"
    # Version 4's names beside version 5's.
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    assert raw["rope_scaling"] is None
    assert raw["tie_word_embeddings"] is True and "draft_vocab_size" not in raw
    config = AutoConfig.from_pretrained(folder)
    assert config._name_or_path == str(folder), "the model finds its bundle from there"
    assert config.draft_head["levels"] == list(exported.space.levels)


def test_scaled_rotary_embeddings_keep_their_settings() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "original_max_position_embeddings": 8192}
    made = _configuration({"model_type": "llama", "rope_parameters": rope}, "bfloat16")
    assert made["rope_theta"] == 5e5
    assert made["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}
    assert made["rope_parameters"] == rope and made["architectures"] == ["NezhaLlamaForCausalLM"]
    older = _configuration({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}, "bfloat16")
    assert (older["rope_theta"], older["rope_scaling"]) == (5e5, None)


@pytest.mark.usefixtures("narrow_heads")
def test_the_backbone_is_converted_and_the_head_is_not(bundle: Bundle, tmp_path: Path) -> None:
    export_tensorrt_llm(bundle.path, tmp_path / "out")
    weights = load_file(tmp_path / "out" / TENSORRT_LLM / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == safetensors_shapes(
        bundle.path / CHECKPOINT / "model.safetensors"
    )
    for name, tensor in weights.items():
        assert tensor.dtype == (torch.float32 if name.startswith("draft_head.") else torch.bfloat16), name


@pytest.mark.usefixtures("narrow_heads")
def test_the_arguments(tail_only: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["export-tensorrt-llm", str(tail_only.path), str(tmp_path / "out"), "--max-batch-size", "32", "--reuse",
              "--cuda-graphs", "--kv-cache-fraction", "0.3", "--dtype", "float16", "--drop-block", "5"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    out = Bundle(tmp_path / "out")
    out.check()
    assert yaml.safe_load((out.path / TENSORRT_LLM / LLM_ARGUMENTS).read_text()) == {
        "max_batch_size": 32,
        "max_num_tokens": 8192,
        "max_seq_len": tail_only.layout.max_tokens + 2,
        "max_beam_width": 1,
        "skip_tokenizer_init": True,
        "enable_chunked_prefill": False,
        "disable_overlap_scheduler": True,
        "cuda_graph_config": {"max_batch_size": 32},
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.3,
            "enable_block_reuse": True,
            "enable_partial_reuse": False,
        },
    }
    assert out.layout.drop_block == 5 and tail_only.layout.drop_block == 1


def test_reuse_and_cuda_graphs_are_off_unless_asked_for(exported: Bundle) -> None:
    arguments = yaml.safe_load((exported.path / TENSORRT_LLM / LLM_ARGUMENTS).read_text())
    assert arguments["kv_cache_config"]["enable_block_reuse"] is False
    assert arguments["cuda_graph_config"] is None


def test_only_bundles_with_a_draft_head_are_exported(baseline: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has decoder 'beam_search'; TensorRT-LLM serves 'draft_head' only"):
        export_tensorrt_llm(baseline.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "width", "dtype", "message"),
    [
        ("qwen3", 32, "bfloat16", r"heads are 32 wide; .* for qwen3 take 64, 128, 256\. .*--hidden-size 128 --heads 2"),
        ("qwen3", 64, "bfloat16", None),
        (
            "qwen3",
            128,
            "float16",
            "dtype is float16; TensorRT-LLM's kernels for qwen3 compute in bfloat16, choose that",
        ),
        ("llama", 16, "float16", "heads are 16 wide; .* for llama take 32, 48, 64"),
        ("llama", 32, "float16", None),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(family: str, width: int, dtype: str, message: str | None) -> None:
    checkpoint = {"model_type": family, "head_dim": width}
    if message is None:
        return require_kernels(checkpoint, dtype, Path("bundle"))
    with pytest.raises(ValueError, match=message):
        require_kernels(checkpoint, dtype, Path("bundle"))
    return None


def test_the_width_of_a_head_may_be_left_to_its_hidden_size() -> None:
    shape = BackboneShape()
    narrow = {"model_type": "qwen3", "hidden_size": shape.hidden_size, "num_attention_heads": shape.heads}
    with pytest.raises(ValueError, match="heads are 32 wide"):  # of the builder's default
        require_kernels(narrow, "bfloat16", Path("bundle"))
    require_kernels(narrow | {"num_attention_heads": 2}, "bfloat16", Path("bundle"))


def test_a_bundle_with_narrow_heads_is_not_exported(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its attention heads are 8 wide"):
        export_tensorrt_llm(bundle.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("narrow_heads")
def test_reuse_is_refused_for_a_head_that_reads_what_it_would_hide(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reads the whole history.* Leave reuse off, or build .* --attention-heads 0"):
        export_tensorrt_llm(bundle.path, tmp_path / "out", TensorRtLlmConfig(reuse=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"dtype": "float32"}, "dtype 'float32' is unknown; use one of .'bfloat16', 'float16'"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"kv_cache_fraction": 1.0}, "kv_cache_fraction is 1.0"),
    ],
)
def test_settings_out_of_range_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorRtLlmConfig(**fields)


@pytest.mark.usefixtures("narrow_heads")
def test_what_does_not_fit_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_num_tokens is 10, but the longest prompt has 64 tokens, 65 with a rule"):
        export_tensorrt_llm(bundle.path, tmp_path / "out", TensorRtLlmConfig(max_num_tokens=10))
    with pytest.raises(ValueError, match="drop_block must be 1 to max_history, 20, got 21"):
        export_tensorrt_llm(bundle.path, tmp_path / "out", drop_block=21)
    assert not (tmp_path / "out").exists()
