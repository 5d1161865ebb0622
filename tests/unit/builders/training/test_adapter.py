"""LoRA adapters: what is merged, against the low-rank products computed apart; what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from genrec.catalog import SemanticIdSpace
from genrec_builders.training.checkpoint import open_backbone
from tests.checkpoints import LEVELS, save_adapter, save_model

SPACE = SemanticIdSpace(LEVELS)
QUERIES, VALUES = "layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"


def merged(base: Path, adapter: Path | None = None, say: Callable[[str], None] = lambda line: None) -> Any:
    return open_backbone(base, SPACE, 20, say=say, adapter=adapter)


def product(tensors: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    up, down = (tensors[f"base_model.model.model.{module}.lora_{side}.weight"] for side in "BA")
    return up @ down


def difference(base: Any, backbone: Any, module: str) -> torch.Tensor:
    return backbone.get_submodule(module).weight.detach() - base.model.get_submodule(module).weight.detach()


@pytest.mark.parametrize(
    ("fields", "queries", "values"),
    [
        ({}, 16 / 4, 16 / 4),
        ({"use_rslora": True}, 16 / 2, 16 / 2),
        ({"alpha_pattern": {"q_proj": 4}}, 4 / 4, 16 / 4),
        ({"alpha_pattern": {r"^model\.layers\.1\..*v_proj": 2}, "use_rslora": True}, 16 / 2, 2 / 2),
        ({"r": 99}, 16 / 4, 16 / 4),  # the rank is that of the tensors, as after `rank_pattern`
    ],
)
def test_every_scale_of_peft(fields: dict[str, Any], queries: float, values: float, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama", 8)
    tensors = save_adapter(tmp_path / "adapter", base, **fields)
    lines: list[str] = []
    backbone = merged(tmp_path / "base", tmp_path / "adapter", lines.append).backbone
    for module, scale in ((QUERIES, queries), (VALUES, values)):
        torch.testing.assert_close(difference(base, backbone, module), scale * product(tensors, module))
    untouched = difference(base, backbone, "layers.0.self_attn.k_proj")
    assert not untouched.any()
    assert any("LoRA adapter, 4 tensors merged by" in line for line in lines)


def test_beside_its_base_it_is_merged_as_well(tmp_path: Path) -> None:
    base = save_model(tmp_path, "qwen2", 8)
    tensors = save_adapter(tmp_path, base)
    backbone = merged(tmp_path).backbone
    torch.testing.assert_close(difference(base, backbone, QUERIES), 4 * product(tensors, QUERIES))


def test_an_embedding_may_have_low_rank_changes_too(tmp_path: Path) -> None:
    """peft keeps those transposed, and without `.weight`."""
    base = save_model(tmp_path / "base", "llama", 8)
    tensors = save_adapter(tmp_path / "adapter", base)
    down, up = torch.randn(4, 8), torch.randn(32, 4)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    save_file(tensors | {f"{name}A": down, f"{name}B": up}, tmp_path / "adapter" / "adapter_model.safetensors")
    backbone = merged(tmp_path / "base", tmp_path / "adapter").backbone
    found = backbone.embed_tokens.weight[:8] - base.model.embed_tokens.weight
    torch.testing.assert_close(found, 4 * (up @ down).T)


def test_modules_that_were_saved_whole_replace_the_bases(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama", 8)
    tensors = save_adapter(tmp_path / "adapter", base)
    norm = torch.randn(32)
    tensors["base_model.model.model.norm.modules_to_save.weight"] = norm
    tensors["base_model.model.model.norm.original_module.weight"] = torch.zeros(32)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(merged(tmp_path / "base", tmp_path / "adapter").backbone.norm.weight, norm)


@pytest.mark.parametrize("tied", [True, False])
def test_a_larger_embedding_comes_with_its_output_head(tied: bool, tmp_path: Path) -> None:
    """As peft saves both after `resize_token_embeddings`, also where they are one."""
    base = save_model(tmp_path / "base", "llama", 8, tie_word_embeddings=tied)
    tensors = save_adapter(tmp_path / "adapter", base, rows=20)
    head = "base_model.model.lm_head.weight"
    tensors.setdefault(head, tensors["base_model.model.model.embed_tokens.weight"].clone())
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    opened = merged(tmp_path / "base", tmp_path / "adapter")
    whole = tensors["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(opened.backbone.embed_tokens.weight[:20], whole)
    assert opened.layout.level_tokens(0)[0] == 20, "new tokens come behind all of the adapter's rows"
    assert (opened.heads is None) == tied


def changed(**fields: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def do(folder: Path) -> None:
        path = folder / "adapter" / "adapter_model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path)

    return do


PREFIX = "base_model.model.model."
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another method": (changed(peft_type="IA3"), "peft_type 'IA3' is not supported.*merge_and_unload"),
    "DoRA": (changed(use_dora=True), "use_dora True is not supported.*merge_and_unload"),
    "PiSSA": (changed(init_lora_weights="pissa_niter_4"), "init_lora_weights 'pissa_niter_4' changes the base, too"),
    "some tokens": (changed(trainable_token_indices=[3]), r"trainable_token_indices \[3\] is not supported"),
    "no alpha": (changed(lora_alpha=None), "adapter_config.json: cannot be used: lora_alpha None is no number"),
    "a pattern that is none": (changed(alpha_pattern={"(": 1}), "adapter_config.json: cannot be used"),
    "no configuration": (lambda f: (f / "adapter" / "adapter_config.json").unlink(), "adapter_config.json: is missing"),
    "no weights": (lambda f: (f / "adapter" / "adapter_model.safetensors").unlink(), "safetensors: is missing; get it"),
    "pickled": (
        lambda f: shutil.move(f / "adapter" / "adapter_model.safetensors", f / "adapter" / "adapter_model.bin"),
        "is missing; of adapter_model.bin safetensors makes it",
    ),
    "half a product": (
        tensors(lambda t: t.pop(f"{PREFIX}{QUERIES}.lora_B.weight")),
        "q_proj.lora_A.weight would not be used",
    ),
    "a magnitude": (
        tensors(lambda t: t.update({f"{PREFIX}{QUERIES}.lora_magnitude_vector": torch.ones(32)})),
        "lora_magnitude_vector would not be used.*merge_and_unload",
    ),
    "a layer too many": (
        tensors(lambda t: t.update({f"{PREFIX}layers.7.mlp.up_proj.lora_{s}.weight": torch.ones(4, 4) for s in "AB"})),
        "changes layers.7.mlp.up_proj.weight, which the base does not have",
    ),
    "another base": (
        tensors(lambda t: t.update({f"{PREFIX}{QUERIES}.lora_A.weight": torch.ones(4, 48)})),
        r"is for a tensor of \[32, 48\], layers.0.self_attn.q_proj.weight of the base has \[32, 32\]",
    ),
    "a norm of another base": (
        tensors(lambda t: t.update({f"{PREFIX}norm.modules_to_save.weight": torch.ones(48)})),
        r"norm.modules_to_save.weight is for a tensor of \[48\], norm.weight of the base has \[32\]",
    ),
    "nothing in it": (tensors(lambda t: t.clear()), "holds no LoRA weights"),
    "a base with one of its own": (
        lambda f: shutil.copy(f / "adapter" / "adapter_config.json", f / "base"),
        "holds an adapter of its own beside",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", "llama", 8))
    change(tmp_path)
    with pytest.raises(ValueError) as caught:
        merged(tmp_path / "base", tmp_path / "adapter")
    text = str(caught.value)
    assert re.search(message, text) and "\n" not in text, text
