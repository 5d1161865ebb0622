"""The baseline: beam search over a shared cache against a naive one without any, ONNX against PyTorch, checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genrec.bundle.checkpoint_shapes import checkpoint_problems, expected_shapes
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines.base import Drafts
from genrec.engines.onnx import OnnxEngine
from genrec.engines.torch import TorchEngine
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import backbone_config
from genrec.model.checkpoint import load_checkpoint
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.export.onnx import export_onnx
from tests.near import allowed, assert_same_drafts, assert_same_ranking

SPACE = SemanticIdSpace((5, 12, 7, 9))
# Level 1 lies in two runs, as in a tokenizer that held some of its tokens before.
LAYOUT = PromptLayout(
    space=SPACE,
    prefix=(1,),
    placeholders=(),
    sid_tokens=(((2, 5),), ((30, 4), (10, 8)), ((40, 7),), ((20, 9),)),
    max_history=12,
)


def small_model(family: str, seed: int = 0, layers: int = 3) -> AutoregressiveModel:
    torch.manual_seed(seed)
    config = backbone_config(
        family,
        vocab_size=LAYOUT.vocabulary_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    model = AutoregressiveModel(config, LAYOUT.sid_tokens).eval()
    for parameter in model.parameters():  # far from symmetric, so that a wrong wiring shows
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def prompts_of(rng: np.random.Generator, items: list[int]) -> list[np.ndarray]:
    return [LAYOUT.encode(rng.integers(0, SPACE.levels, (count, SPACE.depth))) for count in items]


def padded(prompts: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded with a token that means something: a model that attends to it answers otherwise."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32)
    token_ids = torch.full((len(prompts), int(lengths.max())), 33, dtype=torch.int32)
    for row, prompt in zip(token_ids, prompts, strict=True):
        row[: len(prompt)] = torch.from_numpy(prompt)
    return token_ids, lengths


def draft(model: AutoregressiveModel, prompts: list[np.ndarray], table: PrefixTable, width: int) -> Drafts:
    with torch.inference_mode():
        codes, scores, *_ = model.draft(*padded(prompts), Masks.of(table), width)
    return Drafts(codes.numpy(), scores.numpy())


def naive_beam(
    model: AutoregressiveModel, prompt: np.ndarray, live: set[tuple[int, ...]] | None, width: int
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Beam search that runs the whole sequence again for every beam and keeps nothing; best first.

    Fails where what a level keeps and what it drops nearly tie, because all that follows depends on it.
    """
    embeddings = model.input_embeddings().detach().numpy()
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level in range(SPACE.depth):
        candidates = []
        written = [[LAYOUT.level_tokens(place)[code] for place, code in enumerate(sid)] for sid, _ in beams]
        sequences = torch.tensor([[*prompt.tolist(), *tokens] for tokens in written])
        last = model.model(sequences, use_cache=False).last_hidden_state[:, -1].numpy()
        for (sid, score), hidden in zip(beams, last, strict=True):
            logits = embeddings[LAYOUT.level_tokens(level)] @ hidden
            log_p = logits - np.logaddexp.reduce(logits)
            for code in range(SPACE.levels[level]):
                grown = (*sid, code)
                if live is None or any(item[: level + 1] == grown for item in live):
                    candidates.append((grown, score + float(log_p[code])))
        candidates.sort(key=lambda pair: -pair[1])
        if len(candidates) > width and level + 1 < SPACE.depth:
            kept, dropped = candidates[width - 1][1], candidates[width][1]
            assert kept - dropped > 2 * allowed(kept), "take another seed"
        beams = candidates[:width]
    return [sid for sid, _ in beams], [score for _, score in beams]


def catalogue(rng: np.random.Generator, items: int) -> tuple[PrefixTable, set[tuple[int, ...]]]:
    sids = rng.integers(0, SPACE.levels, (items, SPACE.depth))
    return PrefixTable.build(SPACE, SPACE.encode(sids)), {tuple(sid) for sid in sids.tolist()}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("width", [1, 4, 40])  # 40 is wider than the first level
@pytest.mark.parametrize("masked", [True, False])
def test_the_shared_cache_finds_what_a_search_without_cache_finds(family: str, width: int, masked: bool) -> None:
    rng = np.random.default_rng(width)
    model = small_model(family, seed=width)
    table, live = catalogue(rng, 60)
    prompts = prompts_of(rng, [1, 7, 3])
    drafts = draft(model, prompts, table if masked else table.unrestricted(), width)
    assert drafts.codes.shape == (3, width)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            sids, expected = naive_beam(model, prompt, live if masked else None, width)
            finite = np.isfinite(drafts.scores[row])
            found = [tuple(sid) for sid in SPACE.decode(drafts.codes[row][finite]).tolist()]
            assert_same_ranking(found, drafts.scores[row][finite], sids, expected)


def test_a_batch_of_different_lengths_is_answered_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    model = small_model("qwen3")
    table, _ = catalogue(rng, 400)
    prompts = prompts_of(rng, [2, 12, 1, 5, 5, 8])
    together = draft(model, prompts, table, 30)
    for row, prompt in enumerate(prompts):
        ours = Drafts(together.codes[row : row + 1], together.scores[row : row + 1])
        assert_same_drafts(ours, draft(model, [prompt], table, 30))


@pytest.mark.training
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_onnx_and_torch_draft_the_same(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = small_model(family, layers=2)  # the exporter is slow
    width = 40
    model.save_checkpoint(tmp_path / "checkpoint")
    export_onnx(model, tmp_path / "model.onnx", width)
    table = catalogue(rng, 400)[0]
    onnx = OnnxEngine(tmp_path / "model.onnx", table, width, threads=1)
    reference = TorchEngine(tmp_path / "checkpoint", table, width)
    for items in ([3], [12, 1, 6, 2], [1, 1]):
        prompts = prompts_of(rng, items)
        for masked in (True, False):
            assert_same_drafts(onnx.draft(prompts, masked=masked), reference.draft(prompts, masked=masked))


def test_the_prompt_is_stored_once_however_many_beams_read_it() -> None:
    rng = np.random.default_rng(0)
    model = small_model("llama")
    token_ids, lengths = padded(prompts_of(rng, [5, 9]))
    with torch.inference_mode():
        _, cache = model.prefill(token_ids.long(), lengths.long())
        stored = {value.data_ptr() for layer in cache for value in vars(layer).values() if torch.is_tensor(value)}
        for _ in range(2):
            model.decode(torch.full((2, 30), 3), lambda values: values, lengths.long(), cache)
    left = [value for layer in cache for value in vars(layer).values() if torch.is_tensor(value)]
    assert {value.data_ptr() for value in left} == stored
    assert max(value.numel() for value in left) == 2 * token_ids.shape[1] * 2 * 8  # B S G e


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_checkpoint_comes_back_the_same_of_its_own_kind(family: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = small_model(family)
    model.save_checkpoint(tmp_path)
    assert list(checkpoint_problems(tmp_path, SPACE.levels, LAYOUT)) == []
    loaded = load_checkpoint(tmp_path)
    assert isinstance(loaded, AutoregressiveModel) and loaded.levels == SPACE.levels
    assert loaded.state_dict().keys() == load_file(tmp_path / "model.safetensors").keys()
    table, prompts = catalogue(rng, 400)[0].unrestricted(), prompts_of(rng, [4, 2])
    # Loaded weights lie elsewhere in memory, for which some kernels add up in another order.
    assert_same_drafts(draft(loaded, prompts, table, 10), draft(model, prompts, table, 10))
    with pytest.raises(ValueError, match="has no 'draft_head'"):
        NezhaModel.load_checkpoint(tmp_path)


def test_a_checkpoint_of_the_other_kind_opens_as_that_and_leaves_no_trace_in_this(tmp_path: Path) -> None:
    nezha = NezhaModel(small_model("llama").config, SPACE.levels, 12, 24)
    nezha.save_checkpoint(tmp_path / "nezha")
    loaded = load_checkpoint(tmp_path / "nezha")
    assert isinstance(loaded, NezhaModel)
    model = AutoregressiveModel(loaded.config, LAYOUT.sid_tokens, loaded.model)
    model.save_checkpoint(tmp_path / "baseline")
    assert isinstance(load_checkpoint(tmp_path / "baseline"), AutoregressiveModel)
    assert list(checkpoint_problems(tmp_path / "baseline", SPACE.levels, LAYOUT)) == []


def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path: Path) -> None:
    model = small_model("qwen3")
    model.save_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["draft_head.projections.0.weight"] = torch.zeros(5, 24)
    save_file(tensors, tmp_path / "model.safetensors")
    assert list(checkpoint_problems(tmp_path, SPACE.levels, LAYOUT)) == [
        "model.safetensors: tensor model.layers.1.mlp.up_proj.weight is missing",
        "model.safetensors: tensor draft_head.projections.0.weight does not belong to this configuration",
    ]
    head = model.config.to_dict() | {"draft_head": {"state_size": 4, "transition_size": 8}}
    assert "draft_head.projections.0.weight" in expected_shapes(head, SPACE.levels)


def test_a_checkpoint_that_decodes_other_tokens_than_its_prompts_is_named(tmp_path: Path) -> None:
    small_model("qwen3").save_checkpoint(tmp_path)
    contiguous = PromptLayout.contiguous(SPACE, 2)
    assert list(checkpoint_problems(tmp_path, SPACE.levels, contiguous)) == [
        "config.json: beam_search wants prompts with 0 placeholders, not 4",
        "config.json: beam_search has other sid_tokens than the prompt layout",
    ]
    problems = list(checkpoint_problems(tmp_path, (5, 12, 7), LAYOUT))
    assert problems == ["config.json: beam_search has levels [5, 12, 7, 9], not [5, 12, 7]"]


def test_the_longest_prompt_and_what_is_written_behind_it_need_positions(tmp_path: Path) -> None:
    model = small_model("qwen3")
    needed = LAYOUT.max_tokens + SPACE.depth - 1
    for positions, problems in ((needed, 0), (needed - 1, 1)):
        model.config.max_position_embeddings = positions
        model.save_checkpoint(tmp_path)
        assert len(list(checkpoint_problems(tmp_path, SPACE.levels, LAYOUT))) == problems


@pytest.mark.parametrize("text", ["{}", '{"draft_head": {"levels": [2]}, "beam_search": {"levels": [2]}}', "[", "[]"])
def test_a_config_of_no_one_decoder_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_checkpoint(tmp_path)
