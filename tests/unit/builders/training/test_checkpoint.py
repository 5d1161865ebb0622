"""A trained backbone to start from: what is used of it, what is said of the rest, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from genrec.bundle import BundleError
from genrec.bundle.checkpoint_shapes import FAMILIES
from genrec.catalog import PrefixTable, RuleMasks, SemanticIdSpace
from genrec.engines.base import Drafts
from genrec.engines.onnx import CODES, RULE_BITS, RULE_ROWS, SCORES, OnnxEngine, graph_masks
from genrec.engines.torch import TorchEngine
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import backbone_config
from genrec.model.checkpoint import load_checkpoint
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.export.onnx import export_onnx
from genrec_builders.training import checkpoint as training_checkpoint
from genrec_builders.training.checkpoint import open_backbone
from genrec_builders.training.checkpoint_config import DEFAULTS
from genrec_builders.training.objective import NezhaObjective, PackedBatch
from tests.near import assert_same_drafts

SPACE = SemanticIdSpace((4, 6))
PATTERNS = ("<a_{}>", "<b_{}>")
WORDS = ["<unk>", "<s>", *(f"<a_{code}>" for code in range(4)), *(f"<b_{code}>" for code in range(6)), "tent"]
SIZES: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 1,
}  # fmt: skip


def saved(folder: Path, family: str = "qwen3", words: list[str] = WORDS, **fields: Any) -> Path:
    """A checkpoint as transformers saves it, with a tokenizer and weights that are far from their initial values."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | fields), attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def configured(folder: Path, **fields: Any) -> None:
    """Writes `fields` into config.json; None stands for null, `...` takes a field out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def opened(folder: Path, *arguments: Any, **options: Any) -> tuple[Any, PromptLayout]:
    found = open_backbone(folder, *arguments, **options)
    return found.backbone, found.layout


def said(folder: Path, patterns: tuple[str, ...] | None = PATTERNS, **options: Any) -> list[str]:
    lines: list[str] = []
    open_backbone(folder, SPACE, 5, patterns, say=lines.append, **options)
    return lines


# What is supported computes what transformers computes


VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {}),
    "shared key heads": ("qwen3", {"num_key_value_heads": 2}),
    "heads wider than the states": ("llama", {"head_dim": 16}),
    "biases of attention": ("qwen3", {"attention_bias": True}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "another epsilon": ("qwen3", {"rms_norm_eps": 0.3}),
    "tied head": ("qwen3", {"tie_word_embeddings": True}),
    "another base": ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}}),
    "yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "rope_theta": 100.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 100.0,
            }
        },
    ),
    "sliding window that is not in use": ("qwen3", {"use_sliding_window": False, "sliding_window": 4}),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_supported_variation_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    family, fields = VARIATIONS[name]
    folder = saved(tmp_path / "original", family, **fields)
    backbone, layout = opened(folder, SPACE, 20, PATTERNS)
    NezhaModel(backbone.config, SPACE.levels, 8, 16, backbone=backbone).save_checkpoint(tmp_path / "ours")
    model = load_checkpoint(tmp_path / "ours")
    tokens = torch.randint(0, SIZES["vocab_size"], (2, 45), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder)(tokens).last_hidden_state
        served, _, _ = model.read_prompts(tokens, torch.tensor([45, 45]), 45)
        trained, _ = model.causal_states(tokens)
    torch.testing.assert_close(served, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-4)
    assert layout.vocabulary_size == model.config.vocab_size


def in_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def in_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_prefix(folder: Path) -> None:
    """As `AutoModel` itself is saved: no "model." before the names, and no head."""
    AutoModel.from_pretrained(folder).save_pretrained(folder)


def of_an_older_transformers(folder: Path) -> None:
    """Version 4 wrote `torch_dtype`, `rope_theta` and `rope_scaling`; the first Llamas tables of frequencies too."""
    configured(folder, dtype=..., rope_parameters=..., torch_dtype="float32", rope_theta=10000.0, rope_scaling=None)
    weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))


@pytest.mark.parametrize("form", [in_shards, in_pickle, without_prefix, of_an_older_transformers])
def test_every_form_of_the_files_is_read(form: Callable[[Path], None], tmp_path: Path) -> None:
    folder = saved(tmp_path)
    expected = load_file(folder / "model.safetensors")
    form(folder)
    backbone, _ = opened(folder, SPACE, 5, PATTERNS)
    for name, tensor in backbone.state_dict().items():
        original = expected[f"model.{name}"]
        torch.testing.assert_close(tensor[: len(original)], original, rtol=0, atol=0)


# What is refused, before the weights are loaded


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 988097824\n"
    return lambda folder: (folder / name).write_text(text)  # type: ignore[return-value]


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def only(*names: str) -> Callable[[Path], None]:
    def keep(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()

    return keep


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "shop/base", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def adapter_alone(folder: Path) -> None:
    only("tokenizer.json")(folder)
    adapter(folder)


def lacking_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_pickle(folder: Path) -> None:
    in_pickle(folder)
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:-100])


def pickle_without_a_norm(folder: Path) -> None:
    weights(folder, lambda t: t.pop("model.norm.weight"))
    in_pickle(folder)


def as_peft_names(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"base_model.model.{name}"] = tensors.pop(name)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 32)


def as_gptq_names(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        del tensors[name]
        tensors[name.replace(".weight", ".qweight")] = torch.zeros(4, 4, dtype=torch.int32)


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


Change = Callable[[Path], Any]
REFUSED: dict[str, tuple[Change, str]] = {
    # files
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: is missing"),
    "config cut": (lambda f: put(f, "config.json", '{"model_type": "qw'), "config.json: is no JSON"),
    "config is a list": (lambda f: put(f, "config.json", "[]"), "config.json: is no JSON object"),
    "config pointer": (pointer("config.json"), "config.json: is a Git LFS pointer, not the file itself.*git lfs pull"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "weights pointer": (pointer("model.safetensors"), "model.safetensors: is a Git LFS pointer.*git lfs pull"),
    "tokenizer pointer": (pointer("tokenizer.json"), "tokenizer.json: is a Git LFS pointer.*git lfs pull"),
    "tokenizer cut": (lambda f: put(f, "tokenizer.json", '{"model"'), "tokenizer.json: is no tokenizer"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: is missing, but.*save_pretrained"),
    "weights cut": (cut, "model.safetensors: cannot be read: .*; get it again"),
    "weights empty": (lambda f: put(f, "model.safetensors", ""), "model.safetensors: cannot be read: it is cut short"),
    "shard lacking": (lacking_shard, "model-00002-of-00002.safetensors: is missing"),
    "pickle cut": (cut_pickle, "pytorch_model.bin: cannot be read"),
    "gguf alone": (
        lambda f: (only("config.json", "tokenizer.json")(f), put(f, "model-q4.gguf", "GGUF")),
        "has no weights.*model-q4.gguf",
    ),
    # other kinds of checkpoints
    "lora alone": (adapter_alone, "LoRA adapter of shop/base without that base.*--checkpoint BASE --adapter "),
    "lora within": (lambda f: weights(f, as_peft_names), "holds LoRA weights.*--adapter DIR"),
    "gptq": (lambda f: configured(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantization.*'gptq'"),
    "gptq by its tensors": (lambda f: weights(f, as_gptq_names), "q_proj.weight is missing.*quantised"),
    "t5": (lambda f: configured(f, model_type="t5"), "config.json: model_type 't5' is not supported.*qwen2 or mistral"),
    "no type": (lambda f: configured(f, model_type=...), "config.json: has no model_type.*qwen2 or mistral"),
    "own code": (lambda f: configured(f, auto_map={"AutoModel": "mine.Model"}), "auto_map names code of its own"),
    # fields
    "sliding window": (
        lambda f: configured(f, use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=...),
        "sliding window of 8 tokens is in use.* has 13.*max_history below 5",
    ),
    "layer types": (
        lambda f: configured(f, layer_types=["full_attention", "chunked_attention"]),
        "layer_types 'chunked_attention'",
    ),
    "longrope": (lambda f: configured(f, rope_parameters={"rope_type": "longrope"}), "rope_type 'longrope'"),
    "longrope as it was called": (lambda f: configured(f, rope_scaling={"type": "longrope"}), "rope_type 'longrope'"),
    "mrope": (lambda f: configured(f, rope_scaling={"type": "mrope", "mrope_section": [1]}), "rope_type 'mrope'"),
    "factor without a kind": (lambda f: configured(f, rope_scaling={"factor": 2.0}), "would not use factor 2.0"),
    "rope lacks a factor": (lambda f: configured(f, rope_scaling={"rope_type": "yarn"}), "'yarn' has no factor"),
    "rope by layer": (
        lambda f: configured(f, rope_parameters={"full_attention": {"rope_type": "default"}}),
        "one for each kind of layer",
    ),
    "part of the heads": (lambda f: configured(f, partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    "both ways": (lambda f: configured(f, is_causal=False), "is_causal False"),
    "biases without weights": (lambda f: configured(f, attention_bias=True), "q_proj.bias is missing"),
    "no size": (lambda f: configured(f, hidden_size=...), "config.json: has no hidden_size"),
    "size is text": (lambda f: configured(f, num_hidden_layers="two"), "num_hidden_layers 'two' is no positive whole"),
    "heads do not divide": (lambda f: configured(f, num_key_value_heads=3), "num_key_value_heads 3 does not divide"),
    "several bos": (lambda f: configured(f, bos_token_id=[1, 2]), r"bos_token_id \[1, 2\]"),
    "bos without a row": (lambda f: configured(f, bos_token_id=16), "bos_token_id 16 .*16 rows"),
    "activation": (lambda f: configured(f, hidden_act="selfmade"), "selfmade"),
    "positions": (lambda f: configured(f, max_position_embeddings=9), "max_position_embeddings 9 .*13 tokens"),
    # tensors
    "a norm is missing": (
        lambda f: weights(f, lambda t: t.pop("model.layers.1.input_layernorm.weight")),
        "tensor model.layers.1.input_layernorm.weight is missing",
    ),
    "a layer is missing": (lambda f: configured(f, num_hidden_layers=3), "model.layers.2.*is missing.*11 in all"),
    "a norm is missing from a pickle": (pickle_without_a_norm, "norm.weight is missing"),
    "a layer too many": (
        lambda f: configured(f, num_hidden_layers=1),
        "model.layers.1.*would not be used.*11 in all",
    ),
    "biases that no field names": (
        lambda f: weights(f, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})),
        "model.layers.0.self_attn.q_proj.bias would not be used",
    ),
    "embedding of another size": (lambda f: configured(f, vocab_size=20), r"embed_tokens.weight has shape \[16, 32\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = REFUSED[name]
    change(saved(tmp_path))
    if "pickle" not in name and name != "activation":  # only those are known when they are loaded

        def load(*arguments: Any, **options: Any) -> None:
            raise AssertionError("the weights were loaded first")

        monkeypatch.setattr(training_checkpoint.AutoModel, "from_pretrained", load)
    with pytest.raises(ValueError) as caught:
        open_backbone(tmp_path, SPACE, 5, PATTERNS)
    text = str(caught.value)
    assert re.search(message, text), text
    assert str(tmp_path) in text and "\n" not in text


@pytest.mark.parametrize("name", ["shop/no-such-model", "/no/such/folder"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: there is no such folder.*hf download"):
        open_backbone(Path(name), SPACE, 5)


def test_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.safetensors: is a file; give the folder"):
        open_backbone(saved(tmp_path) / "model.safetensors", SPACE, 5)


def test_a_folder_of_checkpoints_names_them(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint-500")
    with pytest.raises(ValueError, match=r"config.json: is missing.*checkpoint-500"):
        open_backbone(tmp_path, SPACE, 5)


# SID tokens


def test_how_many_sid_tokens_were_found_is_said(tmp_path: Path) -> None:
    lines = said(saved(tmp_path))
    assert "use: level 0, '<a_{}>': all 4 SID tokens found" in lines
    assert "use: level 1, '<b_{}>': all 6 SID tokens found" in lines
    assert not any(line.startswith("warning") for line in lines)


def test_some_that_are_lacking_are_a_warning_with_examples(tmp_path: Path) -> None:
    lines = said(saved(tmp_path, words=[word for word in WORDS if word not in ("<b_1>", "<b_4>")]))
    assert "warning: level 1, '<b_{}>': 4 of 6 SID tokens found; new and random: <b_1>, <b_4>" in lines


@pytest.mark.parametrize("patterns", [("<|a_{}|>", "<b_{}>"), ("<a_{}>", "<B_{}>")])
def test_none_at_a_level_is_an_error_with_what_there_is_instead(patterns: tuple[str, str], tmp_path: Path) -> None:
    wanted, has = next((p, has) for p, has in zip(patterns, PATTERNS, strict=True) if p != has)
    with pytest.raises(ValueError) as caught:
        open_backbone(saved(tmp_path), SPACE, 5, patterns)
    text = str(caught.value)
    assert f"holds none of the {4 if 'a' in wanted else 6} tokens {wanted!r}" in text
    assert has.format(0) in text, "the tokens that look alike are named"


def test_an_empty_pattern_adds_a_level_of_new_tokens_and_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert "new: level 1, no pattern: 6 new tokens with random embeddings" in said(folder, ("<a_{}>", ""))
    _, layout = opened(folder, SPACE, 5, ("<a_{}>", ""))
    assert layout.level_tokens(0).tolist() == [2, 3, 4, 5] and layout.level_tokens(1).tolist() == list(range(16, 22))
    lines = said(folder, None)
    assert "new: level 0, no pattern: 4 new tokens with random embeddings" in lines


def test_tokens_without_rows_in_the_embedding_are_no_found_tokens(tmp_path: Path) -> None:
    """The tokenizer was extended, and the model was not resized."""
    folder = saved(tmp_path / "none", vocab_size=6)
    with pytest.raises(ValueError, match=r"level 1.*'<b_\{\}>'.*6 of them.*no rows.*resize_token_embeddings"):
        open_backbone(folder, SPACE, 5, PATTERNS)
    folder = saved(tmp_path / "some", vocab_size=10)
    lines = said(folder)
    assert (
        "warning: level 1, '<b_{}>': 4 of 6 SID tokens found; new and random: <b_4>, <b_5>, which the tokenizer "
        "holds without a row in the embedding"
    ) in lines
    backbone, layout = opened(folder, SPACE, 5, PATTERNS)
    assert layout.level_tokens(1).tolist() == list(range(6, 12)), "they keep the tokenizer's ids"
    assert layout.placeholders == (13, 14) and backbone.config.vocab_size == 15


def test_text_tokens_without_rows_are_said(tmp_path: Path) -> None:
    folder = saved(tmp_path, vocab_size=12)
    assert "warning: 1 of the tokenizer's 13 tokens has no row in the embedding; new and random: tent" in said(
        folder, max_query=4
    )


@pytest.mark.parametrize("pattern", ["<a>", "<{code}>", "<{}_{}>", "<a_{", "<a_}>", "<{!r}>", "<{:q}>", "{1}"])
def test_a_pattern_needs_one_place_for_the_code(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        open_backbone(saved(tmp_path), SPACE, 5, (pattern, "<b_{}>"))
    assert f"SID token pattern {pattern!r}" in str(caught.value) and "'<a_{}>'" in str(caught.value)


def test_codes_may_be_written_with_leading_zeros(tmp_path: Path) -> None:
    folder = saved(tmp_path, words=["<unk>", "<s>", *(f"<a_{c:03}>" for c in range(4)), *WORDS[6:]])
    assert "use: level 0, '<a_{:03}>': all 4 SID tokens found" in said(folder, ("<a_{:03}>", "<b_{}>"))


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "vocab.json"])
def test_tokens_are_known_from_the_files_of_an_older_tokenizer_too(form: str, tmp_path: Path) -> None:
    """Without a tokenizer.json text cannot be read, but codes can."""
    folder = saved(tmp_path)
    (folder / "tokenizer.json").unlink()
    numbers: dict[str, Any] = {word: number for number, word in enumerate(WORDS)}
    if form == "tokenizer_config.json":
        numbers = {"added_tokens_decoder": {str(number): {"content": word} for word, number in numbers.items()}}
    put(folder, form, json.dumps(numbers))
    _, layout = opened(folder, SPACE, 5, PATTERNS)
    assert layout.level_tokens(1).tolist() == list(range(6, 12))
    with pytest.raises(ValueError, match=r"tokenizer\.json: is missing, but text queries need it.*save_pretrained"):
        open_backbone(folder, SPACE, 5, PATTERNS, max_query=4)


def test_a_list_of_added_tokens_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "tokenizer.json").unlink()
    put(folder, "added_tokens.json", '{"<a_0>": "two"}')
    with pytest.raises(ValueError, match=r"added_tokens\.json: cannot be read: .*no whole number; get it again"):
        open_backbone(folder, SPACE, 5, PATTERNS)


# Markers


MARKED = [*WORDS, "<|sid_begin|>", "<|sid_end|>"]
MARKERS = ("<|sid_begin|>", "<|sid_end|>")


def test_item_markers_are_tokens_of_the_checkpoint(tmp_path: Path) -> None:
    folder = saved(tmp_path, words=MARKED)
    assert "use: <|sid_begin|> and <|sid_end|> around each item" in said(folder, item_markers=MARKERS)
    assert opened(folder, SPACE, 5, PATTERNS, item_markers=MARKERS)[1].markers == (13, 14)
    hint = [line for line in said(folder) if line.startswith("warning")]
    assert len(hint) == 1 and "<|sid_begin|>, <|sid_end|>" in hint[0] and "--item-markers" in hint[0]


def test_item_markers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, words=MARKED, vocab_size=14)
    with pytest.raises(ValueError, match=r"no token '<\|sid_start\|>', an item marker; it has .*<\|sid_"):
        open_backbone(folder, SPACE, 5, PATTERNS, item_markers=("<|sid_start|>", "<|sid_end|>"))
    with pytest.raises(ValueError, match=r"'<\|sid_end\|>', an item marker, has no row among the 14"):
        open_backbone(folder, SPACE, 5, PATTERNS, item_markers=MARKERS)


def test_two_levels_cannot_share_their_tokens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"levels 0 and 1 have the same SID token pattern '<a_\{\}>'"):
        open_backbone(saved(tmp_path), SPACE, 5, ("<a_{}>", "<a_{}>"))


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights(folder, lambda t: t.update({"v_head.weight": torch.zeros(1, 32), "v_head.bias": torch.zeros(1)}))
    configured(folder, selfmade_scale=2.0)
    lines = said(folder)
    assert any(line.startswith("use: lm_head.weight, an output head of its own") for line in lines)
    assert "drop: v_head.bias, v_head.weight: no part of the backbone" in lines
    assert "drop: config.json: selfmade_scale: nothing reads it" in lines


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_transformers_writes_need_no_word(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, tie_word_embeddings=True, sliding_window=None)
    (folder / "config.json").write_text(json.dumps(AutoConfig.from_pretrained(folder).to_dict()))
    assert [line for line in said(folder) if not line.startswith("use")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_are_left_out_have_the_familys_values(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family)
    off = {"sliding_window": None} if family == "qwen2" else {}  # one that is not in use, transformers forgets
    assert {name: getattr(config, name) for name in DEFAULTS[family]} == DEFAULTS[family] | off
    if family == "mistral":
        return
    folder = saved(tmp_path, family, num_key_value_heads=4)
    if family == "llama":
        configured(folder, num_key_value_heads=..., head_dim=..., bos_token_id=..., attention_bias=..., mlp_bias=...)
        _, layout = opened(folder, SPACE, 5, PATTERNS)
        assert layout.prefix == (1,)
    else:
        configured(folder, bos_token_id=..., attention_bias=..., max_position_embeddings=...)
        _, layout = opened(folder, SPACE, 5, PATTERNS)
        assert layout.prefix == ()


# No BOS


def objective(layout: PromptLayout, auxiliary_weight: float) -> NezhaObjective:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **(SIZES | {"vocab_size": layout.vocabulary_size}))
    config._attn_implementation = "sdpa"
    return NezhaObjective(NezhaModel(config, SPACE.levels, 8, 16), layout, auxiliary_weight).eval()


def test_without_a_prefix_the_auxiliary_loss_leaves_out_the_first_items_first_code_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    configured(folder, bos_token_id=None)
    _, layout = opened(folder, SPACE, 5, PATTERNS)
    assert layout.prefix == ()
    assert "use: no bos_token_id: prompts start with the first item" in said(folder)
    sids = np.array([[[1, 2], [3, 4], [0, 5], [2, 0]]], np.int32)
    counted = np.array([[False, False, True]])  # the history of this target is items 0, 1 and 2
    with_it, without = objective(layout, 1.0), objective(layout, 0.0)
    plain = AutoregressiveModel(with_it.model.config, layout.sid_tokens, with_it.model.model).eval()
    losses: list[list[float]] = [[], []]
    with torch.no_grad():
        auxiliary = with_it(PackedBatch(sids, counted)) - without(PackedBatch(sids, counted))
        tokens = layout.tokens_of(sids[0, :3]).ravel().astype(np.int64)
        for at, code in enumerate(sids[0, :3].ravel()):
            if at:
                hidden, _ = plain.prefill(torch.from_numpy(tokens[:at])[None], torch.tensor([at]))
                losses[at % 2].append(-plain.level_logits(hidden[0, 0], at % 2).log_softmax(-1)[code].item())
    assert (len(losses[0]), len(losses[1])) == (2, 3)
    assert auxiliary.item() == pytest.approx(np.mean([np.mean(each) for each in losses]), abs=1e-5)


def test_without_a_prefix_a_history_of_one_item_still_has_a_loss(tmp_path: Path) -> None:
    """Nothing is left of the first level then."""
    folder = saved(tmp_path)
    configured(folder, bos_token_id=None)
    _, layout = opened(folder, SPACE, 5, PATTERNS)
    loss = objective(layout, 0.5)
    value = loss.train()(PackedBatch(np.array([[[1, 2], [3, 4]]], np.int32), np.array([[True]])))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters() if p.grad is not None)


# The graph of a long-context checkpoint


@pytest.mark.training
@pytest.mark.parametrize("kind", ["nezha", "autoregressive"])
def test_a_graph_holds_the_rotary_table_of_its_longest_prompt(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "original", max_position_embeddings=131072)
    backbone, layout = opened(folder, SPACE, 5, PATTERNS)
    if kind == "nezha":
        model: Any = NezhaModel(backbone.config, SPACE.levels, 8, 16, backbone=backbone).eval()
    else:
        model = AutoregressiveModel(backbone.config, layout.sid_tokens, backbone).eval()
    export_onnx(model, tmp_path / "whole.onnx", 4)
    export_onnx(model, tmp_path / "cut.onnx", 4, layout.max_tokens)
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.onnx", "cut.onnx")]
    assert sizes[0] > 4_000_000 > 200_000 > sizes[1]
    assert model.get_buffer("rotary_cos").shape[0] == 131072, "the model keeps its own"
    table = PrefixTable.build(SPACE, np.arange(SPACE.size))
    prompts = np.random.default_rng(0).integers(0, 16, (2, layout.max_tokens)).astype(np.int32)
    feeds = {"token_ids": prompts, "lengths": np.array([layout.max_tokens, layout.max_tokens - 2], np.int32)}
    feeds |= graph_masks(table) | {RULE_BITS: np.full((1, 32), 255, np.uint8)}
    feeds[RULE_ROWS] = RuleMasks(SPACE, 32).stacked([None] * 2)
    whole, short = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run([CODES, SCORES], feeds)
        for name in ("whole.onnx", "cut.onnx")
    )
    assert_same_drafts(Drafts.ordered(*short), Drafts.ordered(*whole))


@pytest.mark.training
def test_beam_search_with_more_beams_than_a_prompt_has_tokens(tmp_path: Path) -> None:
    """All beams of a request go through one rotary operator, which wants as many rows in its table."""
    space = SemanticIdSpace((4, 6, 5))
    layout = replace(PromptLayout.contiguous(space, 2), placeholders=())
    backbone = backbone_config(
        "qwen3", vocab_size=layout.vocabulary_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    model, beams = AutoregressiveModel(backbone, layout.sid_tokens).eval(), 24
    assert beams > layout.max_tokens + space.depth
    export_onnx(model, tmp_path / "model.onnx", beams, layout.max_tokens)
    sids = np.stack(np.unravel_index(np.arange(120), space.levels), 1).astype(np.int32)
    table = PrefixTable.build(space, np.arange(space.size))
    prompt = layout.encode(sids[:2])
    theirs = TorchEngine(model, table, beams).draft([prompt])
    assert_same_drafts(OnnxEngine(tmp_path / "model.onnx", table, beams).draft([prompt]), theirs)


def test_a_longest_prompt_below_the_traced_one_can_be_exported(tmp_path: Path) -> None:
    backbone, _ = opened(saved(tmp_path / "original"), SPACE, 1, PATTERNS)
    model = NezhaModel(backbone.config, SPACE.levels, 8, 16, backbone=backbone)
    export_onnx(model, tmp_path / "model.onnx", 4, 4)
    assert (tmp_path / "model.onnx").exists()


# Codes that are no codes


def test_codes_that_need_too_large_token_ids_are_named_as_what_they_are(tmp_path: Path) -> None:
    space = SemanticIdSpace((4, 2**31 - 1))
    message = r"token id \d+ is above 2147483647: level 1 has 2147483647 codes.*number.*from 0"
    with pytest.raises(ValueError, match=message):
        PromptLayout.contiguous(space, 5)
    with pytest.raises(ValueError, match=message):
        open_backbone(saved(tmp_path), space, 5, PATTERNS)


# A bundle


def test_patterns_are_refused_with_a_bundle_whose_own_tokens_would_be_used(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is a bundle, which knows the tokens of its codes; leave out --sid-tokens"):
        open_backbone(tmp_path, SPACE, 5, PATTERNS)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_backbone(tmp_path, SPACE, 5)


def test_the_checkpoint_inside_a_bundle_names_the_bundle(tmp_path: Path) -> None:
    backbone, _ = opened(saved(tmp_path / "original"), SPACE, 5, PATTERNS)
    folder = tmp_path / "bundle" / "checkpoint"
    NezhaModel(backbone.config, SPACE.levels, 8, 16, backbone=backbone).save_checkpoint(folder)
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=f"checkpoint: is inside the bundle {tmp_path / 'bundle'}; give the bundle"):
        open_backbone(folder, SPACE, 5)
