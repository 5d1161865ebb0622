"""The mathematics: packed rows against unpacked prompts, the beam against a naive one, checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from genrec.bundle.checkpoint_shapes import HeadShape, checkpoint_problems, expected_shapes
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.model.backbone import backbone_config, last_positions
from genrec.model.draft_head import DraftHead, History
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.model.packing import pack_rows, structure_of
from genrec.prompt import PromptLayout
from genrec_builders.export.onnx import write_graph
from genrec_builders.training.checkpoint import open_backbone
from tests.near import NEAR, allowed, assert_same_ranking

SPACE = SemanticIdSpace((7, 12, 5))


def small_model(family: str, layout: PromptLayout, seed: int = 0, kv_heads: int = 2) -> NezhaModel:
    torch.manual_seed(seed)
    config = backbone_config(
        family,
        vocab_size=layout.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        max_position_embeddings=256,
    )
    model = NezhaModel(config, SPACE.levels, 24, 48, 3).eval()
    for parameter in model.parameters():  # far from symmetric, so that a wrong wiring shows
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("family", "markers"), [("qwen3", ()), ("llama", ()), ("qwen2", (29, 30)), ("mistral", ())])
def test_a_packed_row_gives_each_position_the_hidden_states_of_its_own_prompt(
    family: str, markers: tuple[int, ...]
) -> None:
    layout = replace(PromptLayout.contiguous(SPACE, max_history=20), markers=markers)
    model = small_model(family, layout)
    items = 9
    sids = np.random.default_rng(0).integers(0, SPACE.levels, (2, items, 3))
    structure = structure_of(layout, items)
    with torch.inference_mode():
        hidden, _ = model.hidden_states(pack_rows(layout, sids), structure.positions[None], structure.allowed)
        packed = hidden[:, structure.hidden_at]
        for row in range(2):
            for known in range(1, items):
                prompt = torch.from_numpy(layout.encode(sids[row, :known]))[None]
                alone = model.prefill(prompt, torch.tensor([prompt.shape[1]]))[0]
                torch.testing.assert_close(packed[row, known - 1], alone[0], rtol=1e-4, atol=1e-4)


class Prefill(torch.nn.Module):
    def __init__(self, model: NezhaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.model.prefill(token_ids, lengths)[0]


@pytest.mark.training
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])  # 4: every query head has its own, for which there is a fused operator
def test_the_prefill_gives_what_transformers_own_pass_gives_in_a_graph_too(
    family: str, kv_heads: int, tmp_path: Path
) -> None:
    layout = PromptLayout.contiguous(SPACE, max_history=20)
    model = small_model(family, layout, kv_heads=kv_heads)
    rng = np.random.default_rng(kv_heads)
    lengths = torch.tensor([7, 31, 4], dtype=torch.int32)
    tokens = torch.from_numpy(rng.integers(0, layout.vocabulary_size, (3, 31)).astype(np.int32))
    with torch.inference_mode():
        expected = last_positions(model.causal_states(tokens.long())[0], lengths, SPACE.depth + 1)
        torch.testing.assert_close(model.prefill(tokens, lengths)[0], expected, rtol=1e-4, atol=1e-5)
    inputs = {"token_ids": tokens[:2, :9].clone(), "lengths": torch.tensor([9, 5], dtype=torch.int32)}
    free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), "hidden": ("batch",)}
    write_graph(Prefill(model), inputs, ["hidden"], free, tmp_path / "prefill.onnx")
    session = ort.InferenceSession(str(tmp_path / "prefill.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"token_ids": tokens.numpy(), "lengths": lengths.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_padding_behind_a_prompt_changes_nothing() -> None:
    layout = PromptLayout.contiguous(SPACE, max_history=20)
    model = small_model("qwen3", layout)
    prompt = torch.from_numpy(layout.encode(np.random.default_rng(1).integers(0, SPACE.levels, (5, 3))))
    padded = torch.cat([prompt, torch.full((11,), 3, dtype=torch.int32)])[None]
    length = torch.tensor([len(prompt)])
    with torch.inference_mode():
        torch.testing.assert_close(
            model.prefill(padded, length)[0], model.prefill(prompt[None], length)[0], rtol=NEAR, atol=NEAR
        )


def naive_beam(
    head: DraftHead, hidden: torch.Tensor, history: History, live: set[tuple[int, ...]] | None, width: int
) -> tuple[list[tuple[int, ...]], list[float], bool]:
    """Beam search by lists of tuples, with the head's teacher-forced logits: semantic IDs and scores, best first.

    And whether at any level but the last what was kept and what was dropped nearly tie: all that follows depends on it.
    """
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    tied = False
    for level, size in enumerate(head.levels):
        candidates = []
        for sid, score in beams:
            forced = torch.zeros(len(head.levels), dtype=torch.int64)
            forced[:level] = torch.tensor(sid)
            log_p = head.logits(hidden[None, None], forced[None, None], history)[level][0, 0].log_softmax(-1)
            for code in range(size):
                grown = (*sid, code)
                if live is None or any(item[: level + 1] == grown for item in live):
                    candidates.append((grown, score + float(log_p[code])))
        candidates.sort(key=lambda pair: -pair[1])
        if len(candidates) > width and level + 1 < len(head.levels):
            kept, dropped = candidates[width - 1][1], candidates[width][1]
            tied |= kept - dropped <= 2 * allowed(kept)
        beams = candidates[:width]
    return [sid for sid, _ in beams], [score for _, score in beams], tied


@example(seed=2006, width=3, items=22, masked=True, attention_heads=1)  # scores of -120, rounded by 1e-4
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([1, 3, 6, 8, 40, 200]),
    items=st.integers(1, 60),
    masked=st.booleans(),
    attention_heads=st.sampled_from([0, 1, 3]),
)
def test_beam_is_the_naive_beam(seed: int, width: int, items: int, masked: bool, attention_heads: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head = DraftHead(SPACE.levels, 16, 12, 24, attention_heads)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, lengths = torch.randn(2, 4, 16), [5, 2]
    history = History(torch.randn(2, 5, 16), torch.arange(5) < torch.tensor(lengths)[:, None, None])
    sids = rng.integers(0, SPACE.levels, (items, 3))
    table = PrefixTable.build(SPACE, SPACE.encode(sids))
    masks = Masks.of(table if masked else table.unrestricted())
    live = {tuple(sid) for sid in sids.tolist()} if masked else None
    with torch.inference_mode():
        codes, scores, *_ = head.beam(hidden, history, masks, width)
        for row in range(2):
            own = history.states[row : row + 1, : lengths[row]]
            whole = History(own, torch.ones(1, 1, lengths[row], dtype=torch.bool))
            sids_expected, scores_expected, tied = naive_beam(head, hidden[row], whole, live, width)
            assume(not tied)
            finite = torch.isfinite(scores[row])
            got = [tuple(sid) for sid in SPACE.decode(codes[row][finite].numpy()).tolist()]
            assert_same_ranking(got, scores[row][finite], sids_expected, scores_expected)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_checkpoint_comes_back_the_same_and_transformers_reads_its_backbone(family: str, tmp_path: Path) -> None:
    layout = PromptLayout.contiguous(SPACE, 20)
    model = small_model(family, layout)
    model.save_checkpoint(tmp_path)
    assert list(checkpoint_problems(tmp_path, SPACE.levels, layout)) == []
    loaded = NezhaModel.load_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert loaded.state_dict().keys() == expected_shapes(config, SPACE.levels).keys()
    prompt = torch.arange(1, 20)[None]
    with torch.inference_mode():
        ours = model.prefill(prompt, torch.tensor([19]))[0]
        torch.testing.assert_close(loaded.prefill(prompt, torch.tensor([19]))[0], ours, rtol=NEAR, atol=NEAR)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).model(prompt).last_hidden_state
        torch.testing.assert_close(theirs[:, -4:], ours, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_from_before_the_history_was_read_drafts_as_it_did(tmp_path: Path) -> None:
    layout = PromptLayout.contiguous(SPACE, 20)
    model = NezhaModel(small_model("qwen3", layout).config, SPACE.levels, 24, 48).eval()
    model.save_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["draft_head"].pop("attention_heads") == 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(checkpoint_problems(tmp_path, SPACE.levels, layout)) == []
    masks = Masks.of(PrefixTable.build(SPACE, np.empty(0, np.int64)).unrestricted())
    prompt = torch.arange(1, 20)[None], torch.tensor([19])
    with torch.inference_mode():
        ours, theirs = (each.draft(*prompt, masks, 8) for each in (model, NezhaModel.load_checkpoint(tmp_path)))
    # Loaded weights lie elsewhere in memory, for which some kernels add up in another order.
    for our_codes, our_scores, codes, scores in zip(*ours[:2], *theirs[:2], strict=True):
        assert_same_ranking(our_codes.tolist(), our_scores, codes.tolist(), scores)


def test_a_number_of_attention_heads_that_cannot_be_is_named(tmp_path: Path) -> None:
    layout = PromptLayout.contiguous(SPACE, 20)
    small_model("qwen3", layout).save_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["draft_head"]["attention_heads"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = "attention heads 5 must divide the state size 24, or be 0"
    assert any(message in problem for problem in checkpoint_problems(tmp_path, SPACE.levels, layout))
    with pytest.raises(ValueError, match=message):
        NezhaModel.load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="attention heads 3 must divide the state size 128"):
        HeadShape(attention_heads=3)


def test_what_a_beam_reads_is_its_own_history() -> None:
    """Placeholders, padding and the neighbours in the batch are not read; every token of the history is."""
    torch.manual_seed(0)
    head = DraftHead(SPACE.levels, 16, 12, 24, 3)
    for weight in head.transition_mixes.parameters():
        torch.nn.init.normal_(weight)
    hidden, codes = torch.randn(2, 1, 4, 16), torch.zeros(2, 1, 3, dtype=torch.int64)
    states, seen = torch.randn(2, 6, 16), torch.arange(6) < torch.tensor([4, 2])[:, None, None]
    with torch.inference_mode():
        expected = head.logits(hidden, codes, History(states, seen))[2]
        for row in range(2):
            for at in range(6):
                changed = states.clone()
                changed[row, at] += 1
                logits = head.logits(hidden, codes, History(changed, seen))[2]
                moved = (logits - expected).abs().amax(-1)[:, 0]
                read = [row == each and bool(seen[row, 0, at]) for each in range(2)]
                assert (moved > 10 * NEAR).tolist() == read and (moved > NEAR).tolist() == read


def test_what_stands_behind_every_history_is_left_out() -> None:
    """Placeholders are never seen: the history that a head reads ends where that of the longest prompt does."""
    model = small_model("qwen3", PromptLayout.contiguous(SPACE, max_history=20))
    inputs, lengths = torch.randn(2, 9, 32), torch.tensor([9, 6])
    history = model.history(inputs, lengths, 3)
    assert history is not None
    torch.testing.assert_close(history.states, inputs[:, :6])
    assert history.seen[:, 0].tolist() == [[True] * 6, [True] * 3 + [False] * 3]


def test_an_existing_checkpoint_keeps_the_sid_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    words = ["hello", "world", *(f"<a_{code}>" for code in range(7)), *(f"<b_{code}>" for code in range(11, -1, -1))]
    Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="hello")).save(
        str(tmp_path / "tokenizer.json")
    )
    config = backbone_config(
        "llama", vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, bos_token_id=1,
    )  # fmt: skip
    original = AutoModelForCausalLM.from_config(config)
    original.save_pretrained(tmp_path)

    opened = open_backbone(tmp_path, SPACE, 20, ("<a_{}>", "<b_{}>", ""))
    backbone, layout = opened.backbone, opened.layout
    model = NezhaModel(backbone.config, SPACE.levels, 16, 32, backbone=backbone)

    assert layout.prefix == (1,)
    assert layout.level_tokens(0).tolist() == list(range(2, 9))
    assert layout.level_tokens(1).tolist() == list(range(20, 8, -1))  # the tokenizer holds them in falling order
    assert layout.level_tokens(2).tolist() == list(range(30, 35))  # it lacks these: added behind the vocabulary
    assert layout.placeholders == (35, 36, 37)
    kept = model.input_embeddings()[:30]
    torch.testing.assert_close(kept, original.model.embed_tokens.weight)
    assert model.input_embeddings().shape == (38, 32)
    model.save_checkpoint(tmp_path / "out")
    assert list(checkpoint_problems(tmp_path / "out", SPACE.levels, layout)) == []


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="'gpt2' is not supported"):
        backbone_config("gpt2")
