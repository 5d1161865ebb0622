"""The memory that a GPU will need: weights to the byte, activations against what PyTorch takes, and the refusal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import genrec.engines.torch as torch_engine
from genrec.bundle import CHECKPOINT, Bundle
from genrec.bundle.checkpoint_shapes import HeadShape
from genrec.catalog import PrefixTable, RuleMasks, SemanticIdSpace
from genrec.engines.buckets import Buckets
from genrec.engines.memory import activation_bytes, plan_memory, require_room, weight_bytes
from genrec.engines.torch import TorchEngine
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.masks import Masks, Rules, as_tensor
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape

SPACE = SemanticIdSpace((64, 64, 64))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=400)
TABLE = PrefixTable.build(SPACE, np.arange(0, SPACE.size, 7))
SHAPES = {
    "shared heads": BackboneShape(hidden_size=64, intermediate_size=192, layers=3, heads=4, kv_heads=2, head_dim=32),
    "wide heads": BackboneShape(hidden_size=128, intermediate_size=384, layers=2, heads=8, kv_heads=4, head_dim=64),
}


def model_of(shape: BackboneShape, decoder: str, half: bool) -> tuple[BackboneModel, dict[str, Any]]:
    """A model, and what its config.json says."""
    config = shape.config(LAYOUT)
    if decoder == "draft_head":
        model: BackboneModel = NezhaModel(config, SPACE.levels, **asdict(HeadShape()))
    else:
        model = AutoregressiveModel(config, LAYOUT.sid_tokens)
    if half:
        model.model.to(torch.bfloat16)
    return model.eval(), config.to_dict() | {model.DECODER: model.settings()}


def peak_bytes(call: Any) -> int:
    """The most that PyTorch's allocator has given out at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.parametrize("decoder", ["draft_head", "beam_search"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_fit_into_what_is_planned_for_them(shape: str, half: bool, decoder: str) -> None:
    model, config = model_of(SHAPES[shape], decoder, half)
    rules = RuleMasks(SPACE, 1 << 16)
    for batch, tokens, width in ((4, 300, 64), (8, 64, 256)):
        masks = Masks.of(TABLE)._replace(
            rules=Rules(as_tensor(rules.bits), torch.tensor(rules.stacked([None] * batch)))
        )
        prompts = torch.ones(batch, tokens, dtype=torch.int32), torch.full((batch,), tokens, dtype=torch.int32)
        with torch.inference_mode():
            model.draft(*prompts, masks, width)
            taken = peak_bytes(lambda prompts=prompts, masks=masks, width=width: model.draft(*prompts, masks, width))
        planned = activation_bytes(config, width, half, batch, tokens)
        assert taken <= planned <= 4 * taken, (batch, tokens, width)


@pytest.mark.parametrize("decoder", ["draft_head", "beam_search"])
@pytest.mark.parametrize("half", [False, True])
def test_weights_are_known_to_the_byte(half: bool, decoder: str) -> None:
    model, config = model_of(SHAPES["shared heads"], decoder, half)
    rotary = [model.get_buffer(name) for name in ("rotary_cos", "rotary_sin")]
    held = sum(each.nbytes for each in [*model.parameters(), *rotary])
    assert weight_bytes(config, half) == held


def test_a_plan_grows_with_what_it_is_for() -> None:
    _, config = model_of(SHAPES["shared heads"], "draft_head", False)
    small = plan_memory(config, TABLE, 64, 1 << 20, True, Buckets((1, 4), (64,)))
    assert small.rules == 1 << 20 and small.masks == 2 * sum(each.nbytes for each in (*TABLE.bits, *TABLE.keys))
    large = plan_memory(config, TABLE, 64, 1 << 20, True, Buckets((1, 8), (64, 128)))
    assert large.activations > 2 * small.activations and large.recordings == 2 * small.recordings
    assert large.weights == small.weights < plan_memory(config, TABLE, 64, 1 << 20, False, None).weights
    assert plan_memory(config, TABLE, 64, 1 << 20, True, None).activations == 0
    require_room(small, small.total, "cuda:0")
    with pytest.raises(
        ValueError, match=r"needs about 0\.5\d GiB of cuda:0, which has 0\.25 free .*use bf16, a smaller"
    ):
        require_room(small, 1 << 28, "cuda:0")


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "free_memory", lambda device: 1 << 20)
    config = json.loads((bundle.path / CHECKPOINT / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))  # and no weights
    with pytest.raises(ValueError, match=r"GiB of cpu, which has 0\.00 free \(weights 0\.00, masks"):
        TorchEngine(tmp_path, bundle.masks, 20, "cpu", "bf16")
    monkeypatch.setattr(torch_engine, "free_memory", lambda device: 1 << 40)
    TorchEngine(bundle.path / CHECKPOINT, bundle.masks, 20, "cpu", "bf16")
