"""A checkpoint of each family goes in, is trained, exported and served, and computes what transformers computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from genrec.bundle import CHECKPOINT, Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines import open_engine
from genrec.engines.torch import TorchEngine
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.checkpoint import load_checkpoint
from genrec.pipeline import Pipeline
from genrec_builders.build import build_bundle
from genrec_builders.config import BuildConfig
from genrec_builders.data import Dataset
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.training.checkpoint import open_backbone
from tests.checkpoints import EXAMPLES, LEVELS, save_model, save_tokenizer
from tests.near import assert_same_drafts

SPACE = SemanticIdSpace(LEVELS)
LETTERS = ("<a_{}>", "<b_{}>", "<c_{}>")
MARKERS = ("<|sid_begin|>", "<|sid_end|>")
# What `genrec build` is told of each example.
TOLD: dict[str, dict[str, Any]] = {
    "minionerec": {"sid_tokens": LETTERS},
    "openonerec": {"sid_tokens": ("<s_a_{}>", "<s_b_{}>", "<s_c_{}>"), "item_markers": MARKERS},
    "lc-rec": {"sid_tokens": LETTERS, "adapter": "lc-rec-adapter"},
    "llama3": {"sid_tokens": ("<|sid_0_{}|>", "<|sid_1_{}|>", "<|sid_2_{}|>")},
    "mistral": {"sid_tokens": LETTERS},
}


@pytest.fixture(scope="module")
def few(tiny_build: Any) -> tuple[Dataset, BuildConfig, Any]:
    """A shop so small that an epoch is a few steps."""
    config, track = tiny_build
    training = replace(config.training, epochs=1, tokens_per_batch=2048, learning_rate=1e-3)
    return make_demo_shop(n_items=200, n_users=60), replace(config, training=training, evaluate_users=5), track


def made(name: str, folder: Path) -> dict[str, Any]:
    """Saves an example; returns what to start from."""
    EXAMPLES[name](folder / name)
    told = TOLD[name] | {"checkpoint": folder / name}
    return told | ({"adapter": folder / told["adapter"]} if "adapter" in told else {})


def reference(checkpoint: Path, adapter: Path | None = None, **told: Any) -> Any:
    """transformers' own model, with the adapter beside the layers as peft computes it, not merged."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if adapter is None:
        return model
    config, tensors = (
        json.loads((adapter / "adapter_config.json").read_text()),
        load_file(adapter / "adapter_model.safetensors"),
    )
    model.resize_token_embeddings(len(tensors["base_model.model.lm_head.weight"]))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(tensors["base_model.model.model.embed_tokens.weight"])
        model.lm_head.weight.copy_(tensors["base_model.model.lm_head.weight"])
    for name, module in model.named_modules():
        if f"base_model.model.{name}.lora_A.weight" in tensors:
            down, up = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")

            def add(module: Any, inputs: Any, output: Any, down: Any = down, up: Any = up) -> Any:
                return output + config["lora_alpha"] / config["r"] * (inputs[0] @ down.T @ up.T)

            module.register_forward_hook(add)
    return model


@pytest.mark.parametrize("name", TOLD)
def test_codes_get_the_logits_that_transformers_gives_them(name: str, tmp_path: Path) -> None:
    told = made(name, tmp_path)
    opened = open_backbone(space=SPACE, max_history=20, say=lambda line: None, **told)
    layout = replace(opened.layout, placeholders=())
    model = AutoregressiveModel(opened.backbone.config, layout.sid_tokens, opened.backbone, opened.heads).eval()
    theirs = reference(**told).eval()
    sids = np.random.default_rng(0).integers(0, 16, (19, 3))
    prompt = torch.from_numpy(layout.encode(sids[:18])).long()[None]
    with torch.no_grad():
        for level in range(3):
            tokens = torch.cat([prompt, torch.from_numpy(layout.tokens_of(sids[18])[:level])[None].long()], 1)
            expected = theirs(tokens).logits[0, -1]
            hidden, _, _ = model.read_prompts(tokens, torch.tensor([tokens.shape[1]]), 1)
            found = model.level_logits(hidden, level)[0, 0]
            assert expected.std() > 0.05
            torch.testing.assert_close(found, expected[model.level_tokens(level)], rtol=1e-4, atol=1e-4)
    model.save_checkpoint(tmp_path / "ours")
    table = PrefixTable.build(SPACE, np.arange(SPACE.size))
    kept, before = (TorchEngine(each, table, 32) for each in (load_checkpoint(tmp_path / "ours"), model))
    assert_same_drafts(kept.draft([layout.encode(sids[:18])]), before.draft([layout.encode(sids[:18])]))


@pytest.mark.training
@pytest.mark.parametrize("name", TOLD)
def test_a_checkpoint_is_trained_exported_and_served(name: str, few: Any, tmp_path: Path) -> None:
    dataset, config, track = few
    build_bundle(dataset, tmp_path / "bundle", replace(config, **made(name, tmp_path)), track)
    bundle = Bundle(tmp_path / "bundle")
    bundle.check()
    folder = bundle.path / CHECKPOINT
    prompts = [bundle.layout.encode(bundle.catalog.sids[:count]) for count in (20, 3)]
    model, theirs = load_checkpoint(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = torch.from_numpy(prompts[0]).long()[None]
        ours, _, _ = model.read_prompts(tokens, torch.tensor([tokens.shape[1]]), tokens.shape[1])
        torch.testing.assert_close(ours, theirs(tokens).last_hidden_state, rtol=1e-4, atol=1e-4)
    onnx, torch_ = (open_engine(bundle, kind).draft(prompts) for kind in ("onnx", "torch"))
    assert_same_drafts(onnx, torch_)
    answer = Pipeline.open(bundle.path).recommend([dataset.items.item_ids[:5]], top_k=10)[0]
    assert len(set(answer.item_ids)) == 10 and answer.valid == answer.drafted > 0


@pytest.mark.training
def test_beam_search_scores_with_the_checkpoints_own_output_head(few: Any, tmp_path: Path) -> None:
    """Not trained, so that it is what the checkpoint holds. What is built from that bundle starts with it, too."""
    dataset, config, track = few
    told = made("openonerec", tmp_path)
    config = replace(config, decoder=BEAM_SEARCH, training=replace(config.training, epochs=0))
    build_bundle(dataset, tmp_path / "bundle", replace(config, **told), track)
    Bundle(tmp_path / "bundle").check()
    opened = [
        open_backbone(space=SPACE, max_history=20, say=lambda line: None, **each)
        for each in (told, {"checkpoint": tmp_path / "bundle"})
    ]
    served = load_checkpoint(tmp_path / "bundle" / CHECKPOINT)
    assert isinstance(served, AutoregressiveModel) and served.heads is not None
    for rows in zip(served.heads, *(each.heads for each in opened), strict=True):
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("patterns", [None, ("<a_{}>", "<b_{}>", "")])
def test_a_backbone_that_does_not_know_the_codes_cannot_stay_as_it_is(patterns: Any, few: Any, tmp_path: Path) -> None:
    dataset, config, track = few
    told = made("minionerec", tmp_path) | {"sid_tokens": patterns}
    config = replace(config, training=replace(config.training, freeze_backbone=True), **told)
    with pytest.raises(ValueError, match="minionerec: a frozen backbone must know the codes of every level"):
        build_bundle(dataset, tmp_path / "bundle", config, track)


@pytest.mark.training
def test_a_frozen_checkpoint_is_the_same_bit_for_bit(few: Any, tmp_path: Path) -> None:
    dataset, config, track = few
    told = made("openonerec", tmp_path)
    training = replace(config.training, freeze_backbone=True, learning_rate=1e-2)
    build_bundle(dataset, tmp_path / "bundle", replace(config, training=training, **told), track)
    before = open_backbone(space=SPACE, max_history=20, say=lambda line: None, **told)
    after = load_checkpoint(tmp_path / "bundle" / CHECKPOINT)
    rows = len(before.backbone.embed_tokens.weight) - 3  # all but the placeholders
    for name, tensor in before.backbone.state_dict().items():
        kept = after.model.state_dict()[name]
        assert torch.equal(kept[:rows], tensor[:rows]) if name == "embed_tokens.weight" else torch.equal(kept, tensor)
    assert after.draft_head.transition_mixes[0].weight.any(), "the head has learned"


def test_a_window_is_taken_out_if_no_prompt_is_longer(tmp_path: Path) -> None:
    """The mistral example's window holds 20 items; what is saved has none, so that no later prompt is cut either."""
    told = made("mistral", tmp_path)
    opened = open_backbone(space=SPACE, max_history=20, say=lambda line: None, **told)
    assert opened.layout.max_tokens == 64 and opened.backbone.config.sliding_window is None
    with pytest.raises(ValueError, match=r"a sliding window of 64 tokens is in use, and the longest prompt has 67"):
        open_backbone(space=SPACE, max_history=21, say=lambda line: None, **told)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_window_of_some_layers_is_a_window(family: str, tmp_path: Path) -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
    save_model(tmp_path, family, 56, head_dim=8, **windowed)
    save_tokenizer(tmp_path, [pattern.format(code) for pattern in LETTERS for code in range(16)])
    opened = open_backbone(tmp_path, SPACE, 12, LETTERS, say=lambda line: None)
    assert set(opened.backbone.config.layer_types) == {"full_attention"}
    with pytest.raises(ValueError, match="a sliding window of 40 tokens is in use, and the longest prompt has 42"):
        open_backbone(tmp_path, SPACE, 13, LETTERS, say=lambda line: None)
