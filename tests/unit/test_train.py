from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.train import TrainingConfig, make_windows, train
from genrec.model.nezha import NezhaModel, backbone_config
from genrec.model.packing import packed_loss
from genrec.prompt import PromptLayout
from genrec.semantic_id import SemanticIdSpace

SPACE = SemanticIdSpace((8, 8))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=6)
SIDS = np.random.default_rng(0).integers(0, 8, (40, 2)).astype(np.int32)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(1, 12))
def test_every_item_but_the_first_is_a_target_once_with_enough_before_it(sizes: list[int], max_history: int) -> None:
    offsets = np.cumsum([0, *sizes])
    windows = make_windows(offsets, np.arange(offsets[-1], dtype=np.int32), max_history)
    seen = np.zeros(offsets[-1], int)
    for start, length, targets in zip(windows.start, windows.length, windows.targets, strict=True):
        assert length <= max_history + 1
        user = np.searchsorted(offsets, start, "right") - 1
        assert start + length <= offsets[user + 1]
        for target in range(start + length - targets, start + length):
            seen[target] += 1
            before = target - start
            assert before >= min(target - offsets[user], (max_history + 1) // 2)
    firsts = offsets[:-1][np.diff(offsets) > 0]
    expected = np.ones(offsets[-1], int)
    expected[firsts] = 0
    np.testing.assert_array_equal(seen, expected)


def new_model(seed: int = 0) -> NezhaModel:
    torch.manual_seed(seed)
    config = backbone_config(
        "qwen3", vocab_size=LAYOUT.vocabulary_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return NezhaModel(config, SPACE.levels)


def sequences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 15, 60)
    # Each item is followed by the next row: something to learn.
    rows = np.concatenate([(rng.integers(40) + np.arange(size)) % 40 for size in sizes]).astype(np.int32)
    return np.cumsum([0, *sizes]), rows


def test_loss_counts_only_the_targets_asked_for() -> None:
    model = new_model().eval()
    sids = SIDS[np.random.default_rng(2).integers(0, 40, (3, 5))]
    counted = np.zeros((3, 4), bool)
    counted[1, 2] = True
    with torch.no_grad():
        loss = packed_loss(model, LAYOUT, sids, counted)
        prompt = torch.from_numpy(LAYOUT.encode(sids[1, :3]))[None]
        hidden = model.prefill(prompt, torch.tensor([prompt.shape[1]]))
        target = torch.from_numpy(sids[1, 3].astype(np.int64))[None]
        logits = model.draft_head.logits(hidden, target)
        expected = np.mean([torch.nn.functional.cross_entropy(x, target[:, i]).item() for i, x in enumerate(logits)])
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_training_learns_and_is_the_same_for_the_same_seed() -> None:
    windows = make_windows(*sequences(), LAYOUT.max_history)
    config = TrainingConfig(epochs=8, tokens_per_batch=512, learning_rate=1e-2)
    losses = [train(new_model(), LAYOUT, SIDS, windows, config) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.6 * losses[0][0]


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    windows = make_windows(*sequences(), LAYOUT.max_history)
    config = TrainingConfig(epochs=3, tokens_per_batch=512)
    whole = new_model()
    train(whole, LAYOUT, SIDS, windows, config)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == steps // 2:
            raise Interrupted

    state = tmp_path / "training.pt"
    with pytest.raises(Interrupted):
        train(new_model(), LAYOUT, SIDS, windows, config, state, stop, save_every_s=0)
    steps: list[int] = []
    resumed = new_model(seed=9)
    train(resumed, LAYOUT, SIDS, windows, config, state, lambda step, total, loss: steps.append(step))
    assert steps[0] > 1
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # A state of other settings is not taken up.
    steps.clear()
    train(new_model(), LAYOUT, SIDS, windows, replace(config, seed=5), state, lambda step, *_: steps.append(step))
    assert steps[0] == 1
