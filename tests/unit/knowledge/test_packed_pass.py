"""The packed forward pass: transformers' own logits for all models of the family; and the trees that it verifies."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from genrec.knowledge.decoder import SpeculativeDecoder
from genrec.knowledge.packed import Packing
from genrec.knowledge.packed_model import PackedModel
from genrec.knowledge.packed_trees import PackedTrees
from genrec.knowledge.texts import TextRequest
from genrec.knowledge.token_tree import TokenTree, TokenTrees
from tests.unit.knowledge.test_speculative_decoder import VOCABULARY, greedy, prompts, tiny

HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """transformers starts biases at zero, where a forgotten one would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
        ("qwen2", {}),  # biases of queries, keys and values only
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        ("mistral", {"sliding_window": None}),
    ],
    ids=str,
)
@torch.inference_mode()
def test_logits_are_those_of_transformers(family: str, options: dict[str, Any]) -> None:
    """Prompts of many lengths in blocks of several texts, then a token each behind what is cached."""
    model = with_biases(tiny(family, 2, **options))
    packed = PackedModel(model)
    asked = [np.arange(size) * 7 % VOCABULARY for size in (1, 9, 40, 2, 17, 3, 5, 8, 13, 21)]
    cache = packed.cache(len(asked))
    cache.reserve(64)
    logits = packed.logits(Packing.of_prompts(asked, 0, cache), cache)
    alone = [model(torch.from_numpy(prompt)[None]).logits[0] for prompt in asked]
    torch.testing.assert_close(logits, torch.cat(alone), atol=2e-4, rtol=1e-4)
    ends = cache.tensor(np.cumsum([prompt.size for prompt in asked]) - 1)
    wanted = packed.logits(Packing.of_prompts(asked, 0, cache), cache, ends)
    torch.testing.assert_close(wanted, logits[ends], atol=2e-4, rtol=1e-4)

    cached = np.array([prompt.size for prompt in asked])
    trees = PackedTrees.of(TokenTrees.empty(len(asked)), np.full(len(asked), 3))
    behind = packed.logits(Packing.of_trees(trees, cached, cache), cache)
    for number, prompt in enumerate(asked):
        whole = model(torch.tensor([[*prompt.tolist(), 3]])).logits[0, -1]
        torch.testing.assert_close(behind[number], whole, atol=2e-4, rtol=1e-4)


def test_weights_are_not_held_twice() -> None:
    model = tiny("llama", 2)
    packed = PackedModel(model)
    mlp = model.base_model.layers[0].mlp
    shared = packed._layers[0].gate_up.weight.untyped_storage().data_ptr()
    assert {part.weight.untyped_storage().data_ptr() for part in (mlp.gate_proj, mlp.up_proj)} == {shared}


def test_rotary_embeddings_that_depend_on_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="'dynamic' depends on the length of a text; use one of the Qwen3"):
        PackedModel(tiny("llama", 2, rope_parameters=rope))


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor has no avx512_bf16")
@torch.inference_mode()
def test_bfloat16_rounds_but_says_the_same() -> None:
    model = with_biases(tiny("llama", 2, attention_bias=True))
    packed = PackedModel(model, "bfloat16")
    asked = prompts(6)
    cache = packed.cache(len(asked))
    assert cache.dtype is torch.bfloat16
    cache.reserve(64)
    logits = packed.logits(Packing.of_prompts(asked, 0, cache), cache).float()
    alone = torch.cat([model(torch.from_numpy(prompt)[None]).logits[0] for prompt in asked])
    assert (logits - alone).norm() < 0.03 * alone.norm()  # 2^-9 for each number rounded, over a few layers
    assert not torch.equal(logits, alone)
    texts = list(SpeculativeDecoder(model, precision="bfloat16").generate([TextRequest(asked[0], max_new_tokens=1)]))
    assert texts[0].tokens.tolist() == greedy(model, asked[0], 1)


def test_a_precision_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3", 2)
    with pytest.raises(ValueError, match="precision is 'int8'; it must be one of float32, bfloat16"):
        PackedModel(model, "int8")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no avx512_bf16 to speed it up; use float32"):
        PackedModel(model, "bfloat16")


@st.composite
def forests(draw: st.DrawFn) -> list[TokenTree]:
    trees = []
    for size in draw(st.lists(st.integers(0, 12), min_size=1, max_size=5)):
        parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
        tokens = np.arange(size, dtype=np.int32)
        trees.append(TokenTree(tokens, np.array(parents, np.int32), np.ones(size, np.float32)))
    return trees


@given(forests(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_branches_depths_and_the_longest_are_those_of_a_slow_search(trees: list[TokenTree], seed: int) -> None:
    packed = PackedTrees.of(TokenTrees.of(trees), np.full(len(trees), 99))
    rng = np.random.default_rng(seed)
    accepted = (rng.random(packed.tokens.size) < 0.7) | (packed.node == 0)
    probability = -np.round(rng.random(packed.tokens.size), 3)
    probability[packed.node == 0] = 0
    path, length = packed.longest(accepted, probability)
    first = 0
    for number, (tree, found) in enumerate(zip(trees, np.split(path, np.cumsum(length)[:-1]), strict=True)):
        above = [[0]]
        for node, parent in enumerate(tree.parents.tolist(), 1):
            above.append([*above[parent + 1], node])
        seen = packed.branches[packed.owner == number]
        assert [np.flatnonzero(row).tolist() for row in seen] == above
        assert packed.depths[packed.owner == number].tolist() == [len(branch) - 1 for branch in above]
        whole = [branch for branch in above if accepted[[first + node for node in branch]].all()]
        best = max((len(branch), sum(probability[first + node] for node in branch)) for branch in whole)
        assert (found - first).tolist() in whole
        assert len(found) == best[0]
        assert probability[found].sum() == pytest.approx(best[1])
        first += tree.size + 1
