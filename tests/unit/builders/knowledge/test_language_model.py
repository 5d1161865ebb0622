"""Training a language model: a standard folder comes out, and it writes what it was taught."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.prompt import item_prompt
from genrec_builders.config import TrainingConfig
from genrec_builders.knowledge.language_model import (
    EOS,
    LanguageModelConfig,
    encode_example,
    train_language_model,
    train_tokenizer,
)
from genrec_builders.knowledge.texts import KnowledgeText
from genrec_builders.training.checkpoint_facts import require_language_model

pytestmark = pytest.mark.training

COLOURS = ("red", "green", "blue", "amber")
TEXTS = [
    KnowledgeText(f"{colour}-{n}", colour, item_prompt({"title": f"{colour} {n}"}), f"A {colour} thing, all {colour}.")
    for colour in COLOURS
    for n in range(8)
]
TINY = LanguageModelConfig(
    vocabulary=300,
    hidden_size=32,
    layers=2,
    heads=2,
    kv_heads=1,
    max_tokens=128,
    training=TrainingConfig(epochs=25, learning_rate=1e-2, dropout=0.0, tokens_per_batch=256),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    path = tmp_path_factory.mktemp("model")
    return path, train_language_model(TEXTS, path, TINY).losses


def test_training_reduces_the_loss(trained: tuple[Path, list[float]]) -> None:
    losses = trained[1]
    assert len(losses) == 25 and losses[0] > 3 and losses[-1] < 0.3


def test_the_folder_is_a_standard_one(trained: tuple[Path, list[float]]) -> None:
    path = trained[0]
    require_language_model(path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    tokenizer = AutoTokenizer.from_pretrained(path)
    made = train_tokenizer([text.prompt + text.text for text in TEXTS], 300)
    for text in (TEXTS[0].prompt, TEXTS[0].text, " A\n\n Étoile  12.5 "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer(text).input_ids == made(text).input_ids
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.config.model_type == "qwen3" and model.config.eos_token_id == tokenizer.eos_token_id
    assert model.dtype == torch.float32


def test_weights_without_a_part_of_the_model_are_refused(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    """Of a pickle only torch can tell; transformers made the part up, at random."""
    tensors = AutoModelForCausalLM.from_pretrained(trained[0]).state_dict()
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]  # the former is tied
    folder = shutil.copytree(trained[0], tmp_path / "knowledge" / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    model = KnowledgeModel.__new__(KnowledgeModel)  # nothing else of the folder is read
    model.folder = tmp_path / "knowledge"
    says = r"knowledge/model: no model can be read: tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"
    with pytest.raises(ValueError, match=says):
        _ = model.language_model


def test_greedy_text_depends_on_the_prompt_and_ends(trained: tuple[Path, list[float]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    for colour in COLOURS:
        prompt = tokenizer(item_prompt({"title": f"{colour} 9"}), return_tensors="pt")
        written = model.generate(**prompt, do_sample=False, max_new_tokens=60)[0, prompt.input_ids.shape[1] :]
        assert tokenizer.decode(written) == f"A {colour} thing, all {colour}.{EOS}"


def test_the_same_recipe_gives_the_same_weights(tmp_path: Path) -> None:
    recipe = replace(TINY, texts=8, training=replace(TINY.training, epochs=1))
    models = []
    for name in ("one", "two"):
        train_language_model(TEXTS, tmp_path / name, recipe)
        models.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_an_end_token_in_a_title_is_text() -> None:
    tokenizer = train_tokenizer(["a"], 300)
    example = encode_example(tokenizer, KnowledgeText("i", "g", item_prompt({"title": EOS}), EOS))
    assert np.flatnonzero(example.tokens == tokenizer.eos_token_id).tolist() == [len(example) - 1]
    assert tokenizer.decode(example.tokens[example.prompt :]) == EOS + EOS


def test_bad_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 texts"):
        train_language_model([], tmp_path, TINY)
    with pytest.raises(ValueError, match="vocabulary is 200; use at least 258"):
        train_language_model(TEXTS, tmp_path, replace(TINY, vocabulary=200))
    with pytest.raises(ValueError, match="the model has 10 positions"):
        train_language_model(TEXTS, tmp_path, replace(TINY, max_tokens=10))
