"""The out-of-tree model on the CPU, against the PyTorch engine: packed batches, and all that is no whole context."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genrec.bundle import TENSORRT_LLM, Bundle
from genrec.engines import open_engine
from genrec.engines.base import Drafts
from genrec.engines.tensorrt_llm.contract import CODES, NO_DRAFTS, SCORES
from tests.near import NEAR, assert_same_drafts


class Packed:
    """Runs the model on packed batches. Each context is a prompt and how many of its tokens are cached."""

    def __init__(self, bundle: Bundle) -> None:
        from tensorrt_llm.llm import load_model

        import genrec.engines.tensorrt_llm.modeling  # noqa: F401

        self.model = load_model(bundle.path / TENSORRT_LLM)

    @torch.inference_mode()
    def run(
        self,
        contexts: Sequence[tuple[np.ndarray, int]],
        decodes: Sequence[np.ndarray] = (),
        padding: int = 0,
        all_logits: bool = False,
    ) -> dict[str, torch.Tensor]:
        """decodes: sequences of which only the last token is new, behind the contexts."""
        from tensorrt_llm._torch.models.modeling_utils import AttentionMetadata

        sequences = [*contexts, *((tokens, len(tokens) - 1) for tokens in decodes)]
        new = [tokens[cached:] for tokens, cached in sequences]
        metadata = AttentionMetadata(
            torch.tensor([len(tokens) for tokens in new], dtype=torch.int32),
            len(contexts),
            [tokens[:cached].tolist() for tokens, cached in sequences],
            padded_num_tokens=sum(map(len, new)) + padding if padding else None,
        )
        tokens = torch.tensor(np.concatenate([*new, np.zeros(padding, np.int32)]), dtype=torch.int32)
        at = [np.arange(cached, len(tokens)) for tokens, cached in sequences]
        positions = torch.tensor(np.concatenate([*at, np.zeros(padding, np.int64)]), dtype=torch.int32)[None]
        return self.model.forward(
            attn_metadata=metadata, input_ids=tokens, position_ids=positions, return_context_logits=all_logits,
            lora_params=None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def packed(stand_in: Any, exported: Bundle) -> Packed:
    return Packed(exported)


@pytest.fixture(scope="module")
def prompts(exported: Bundle) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    lengths = [1, 20, 2, 7, 30, 1, 12, 19]
    sids = exported.catalog.sids
    return [exported.layout.encode(sids[rng.integers(0, len(sids), length)]) for length in lengths]


def assert_same(outputs: dict[str, torch.Tensor], rows: slice | list[int], expected: Drafts) -> None:
    codes, scores = outputs[CODES][rows].numpy(), outputs[SCORES][rows].numpy()
    assert_same_drafts(Drafts.ordered(codes, scores), expected)


def assert_no_drafts(outputs: dict[str, torch.Tensor], rows: list[int]) -> None:
    assert (outputs[CODES][rows] == NO_DRAFTS).all()
    assert outputs[SCORES][rows].isnan().all()


def test_a_packed_batch_gives_what_the_pytorch_engine_gives(
    packed: Packed, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    outputs = packed.run([(prompt, 0) for prompt in prompts])
    width = exported.space.beams(exported.manifest.beam_width)
    assert width > exported.space.levels[0], "the beam must be wider than the first level"
    assert (outputs[CODES].shape, outputs[CODES].dtype) == ((len(prompts), width), torch.int64)
    assert (outputs[SCORES].shape, outputs[SCORES].dtype) == ((len(prompts), width), torch.float32)
    assert outputs["logits"].shape == (len(prompts), packed.model.config.vocab_size)
    assert_same(outputs, slice(None), open_engine(exported, "torch").draft(prompts))


def test_the_llama_family_too(stand_in: Any, llama: Bundle) -> None:
    sids = llama.catalog.sids
    prompts = [llama.layout.encode(sids[first : first + 1 + first % 21]) for first in range(0, 60, 7)]
    outputs = Packed(llama).run([(prompt, 0) for prompt in prompts])
    np.testing.assert_allclose(
        outputs[SCORES].numpy(), open_engine(llama, "torch").draft(prompts).scores, rtol=0, atol=NEAR
    )  # random weights: nearly everything ties


def test_a_cached_prefix_changes_nothing_while_what_the_head_reads_is_computed(
    stand_in: Any, exported_tail_only: Bundle, prompts: list[np.ndarray]
) -> None:
    bundle = exported_tail_only
    contexts = [(prompt, len(prompt) - bundle.space.depth - 1) for prompt in prompts]
    assert_same(Packed(bundle).run(contexts), slice(None), open_engine(bundle, "torch").draft(prompts))


def test_a_context_that_lacks_part_of_its_history_drafts_nothing_and_disturbs_nobody(
    packed: Packed, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    contexts = [(prompt, 1 if row % 3 == 0 else 0) for row, prompt in enumerate(prompts)]
    outputs = packed.run(contexts)
    cached = [row for row, (_, tokens) in enumerate(contexts) if tokens]
    assert_no_drafts(outputs, cached)
    others = [row for row in range(len(contexts)) if row not in cached]
    expected = open_engine(exported, "torch").draft([prompts[row] for row in others])
    assert_same(outputs, others, expected)


@pytest.mark.parametrize("position", ["first", "between", "last"])
def test_a_context_that_lacks_part_of_the_tail_drafts_nothing_and_disturbs_nobody(
    packed: Packed, exported: Bundle, prompts: list[np.ndarray], position: str
) -> None:
    at = {"first": 0, "between": 3, "last": len(prompts)}[position]
    for new in range(1, exported.space.depth + 1):
        contexts = [(prompt, 0) for prompt in prompts]
        contexts.insert(at, (prompts[1], len(prompts[1]) - new))
        outputs = packed.run(contexts)
        assert_no_drafts(outputs, [at])
        others = [row for row in range(len(contexts)) if row != at]
        assert_same(outputs, others, open_engine(exported, "torch").draft(prompts))


def test_decodes_behind_the_contexts_draft_nothing(packed: Packed, exported: Bundle, prompts: list[np.ndarray]) -> None:
    outputs = packed.run([(prompt, 0) for prompt in prompts[:5]], decodes=prompts[5:])
    assert len(outputs[CODES]) == len(outputs["logits"]) == len(prompts)
    assert_no_drafts(outputs, [5, 6, 7])
    assert_same(outputs, slice(0, 5), open_engine(exported, "torch").draft(prompts[:5]))


def test_a_batch_of_decodes_alone_draws_rows_of_a_fixed_shape(packed: Packed, prompts: list[np.ndarray]) -> None:
    """As when one-token contexts run as decodes, and when CUDA graphs are captured."""
    outputs = packed.run([], decodes=prompts)
    assert_no_drafts(outputs, list(range(len(prompts))))


def test_padding_behind_the_batch_is_left_out(packed: Packed, exported: Bundle, prompts: list[np.ndarray]) -> None:
    outputs = packed.run([(prompt, 0) for prompt in prompts], padding=13, all_logits=True)
    assert_same(outputs, slice(None), open_engine(exported, "torch").draft(prompts))
    assert len(outputs["logits"]) == sum(map(len, prompts)), "a row for each token of the batch's own"
    assert outputs["logits"].isfinite().all()


def test_masks_are_the_bundles(packed: Packed, exported: Bundle, prompts: list[np.ndarray]) -> None:
    outputs = packed.run([(prompt, 0) for prompt in prompts])
    live = outputs[CODES].numpy()[np.isfinite(outputs[SCORES].numpy())]
    assert (exported.index.buckets_of(live) >= 0).all()
    names = {name for name, _ in packed.model.named_buffers()} | set(packed.model.state_dict())
    assert not any("mask" in name for name in names), "buffers are never loaded"


@pytest.fixture
def damaged(exported: Bundle, tmp_path: Path) -> Path:
    """A copy of the exported bundle; returns its folder for TensorRT-LLM."""
    return Path(shutil.copytree(exported.path, tmp_path / "copy")) / TENSORRT_LLM


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "Missing key.*projections.1.weight"),
        ("add", "Unexpected key.*another.weight"),
        ("reshape", "size mismatch for projections.1.weight"),
        ("drop all", "Missing key"),
    ],
)
def test_every_tensor_of_the_draft_head_is_asserted(stand_in: Any, damaged: Path, change: str, message: str) -> None:
    weights = load_file(damaged / "model.safetensors")
    name = "draft_head.projections.1.weight"
    if change == "drop":
        del weights[name]
    elif change == "add":
        weights["draft_head.another.weight"] = weights[name].clone()
    elif change == "reshape":
        weights[name] = weights[name][:-1].clone()
    else:
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("draft_head.")}
    save_file(weights, damaged / "model.safetensors")
    # The stock loader stumbles over a shape by itself.
    with pytest.raises((ValueError, RuntimeError), match=message if change != "reshape" else "size|shape"):
        Packed(Bundle(damaged.parents[1]))


def test_a_folder_away_from_its_bundle_is_named(stand_in: Any, damaged: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "engines" / "tensorrt_llm"
    shutil.copytree(damaged, alone)
    from tensorrt_llm.llm import load_model

    with pytest.raises(ValueError, match=r"elsewhere/manifest.json: is missing"):
        load_model(alone)


def test_a_bundle_of_other_levels_is_refused(stand_in: Any, damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    manifest = damaged.parents[1] / "manifest.json"
    levels = json.loads(manifest.read_text())
    levels["levels"] = [16, 16, 24]
    manifest.write_text(json.dumps(levels))
    assert config["draft_head"]["levels"] == [16, 16, 16]
    with pytest.raises(ValueError, match=r"bits_2\.npy|levels"):
        Packed(Bundle(damaged.parents[1]))


@pytest.mark.parametrize(
    ("field", "message"), [("pp_size", "pipeline_parallel_size"), ("spec_config", "speculative_config")]
)
def test_deployments_that_the_head_cannot_work_in_are_refused(
    stand_in: Any, exported: Bundle, field: str, message: str
) -> None:
    from tensorrt_llm._torch.models.modeling_utils import Mapping, ModelConfig
    from transformers import AutoConfig

    from genrec.engines.tensorrt_llm.modeling import NezhaQwen3ForCausalLM

    config = AutoConfig.from_pretrained(exported.path / TENSORRT_LLM)
    model_config = ModelConfig(config, Mapping(pp_size=2 if field == "pp_size" else 1))
    if field == "spec_config":
        model_config.spec_config = object()
    with pytest.raises(ValueError, match=message):
        NezhaQwen3ForCausalLM(model_config)
