"""A torch engine as it is served: all recorded before it is ready, nothing after, masks changed where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import genrec.engines.torch as torch_engine
from genrec.bundle import Bundle
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines import open_engine
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import call_again
from genrec.engines.torch import TorchEngine, device_of
from genrec.golden import check_drafts
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from tests.captures import Counting
from tests.near import assert_same_drafts

SPACE = SemanticIdSpace((40, 50, 7))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=12)
CODES = np.arange(0, SPACE.size - 1, 50)
BUCKETS = Buckets((1, 4), (20, 40))


def model_of() -> NezhaModel:
    torch.manual_seed(0)
    shape = BackboneShape(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, head_dim=8)
    model = NezhaModel(shape.config(LAYOUT), SPACE.levels, 24, 48, 3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def prompts_of(items: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(items))
    return [LAYOUT.encode(rng.integers(0, SPACE.levels, (count, 3))) for count in items]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines of the CPU that draft with copies of masks and rules, as those of a GPU do."""
    of, as_tensor = Masks.of, torch_engine.as_tensor

    def copied(table: PrefixTable, device: Any = "cpu") -> Masks:
        bits, keys, _ = of(table, device)
        return Masks(tuple(each.clone() for each in bits), tuple(each.clone() for each in keys))

    monkeypatch.setattr(torch_engine.Masks, "of", copied)
    monkeypatch.setattr(torch_engine, "as_tensor", lambda array: as_tensor(array).clone())
    made = TorchEngine.__init__

    def copying(self: TorchEngine, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        self.copies_masks = True

    monkeypatch.setattr(TorchEngine, "__init__", copying)
    yield


def test_all_buckets_are_recorded_before_an_engine_is_ready_and_none_after() -> None:
    counting, table = Counting(), PrefixTable.build(SPACE, CODES)
    engine = TorchEngine(model_of(), table, 20, "cpu", buckets=BUCKETS, capture=counting)
    engine.warm_up(prompts_of([3])[0], 4)
    assert counting.recordings == len(BUCKETS)
    plain = TorchEngine(model_of(), table, 20, "cpu")
    for items in ([1], [12], [5, 2, 7], [12, 1, 1, 1]):
        assert_same_drafts(engine.draft(prompts_of(items)), plain.draft(prompts_of(items)))
    assert counting.recordings == len(BUCKETS)
    with pytest.raises(ValueError, match=r"a batch of 5 prompts of up to 7 tokens is in no bucket; the largest has 4"):
        engine.draft(prompts_of([1] * 5))
    with pytest.raises(ValueError, match=r"1 prompts of up to 41 tokens is in no bucket"):
        engine.draft([np.ones(41, np.int32)])
    with pytest.raises(RuntimeError, match=r"bucket of 1 prompts of 20 tokens has no recording, and none is made once"):
        engine.draft(prompts_of([1]), masked=False)
    assert counting.recordings == len(BUCKETS)


@pytest.mark.usefixtures("copies")
def test_a_table_of_the_same_size_takes_the_place_of_one_without_a_recording() -> None:
    counting, table = Counting(), PrefixTable.build(SPACE, CODES)
    engine = TorchEngine(model_of(), table, 20, "cpu", buckets=BUCKETS, capture=counting)
    engine.warm_up(prompts_of([3])[0], 4)
    other = PrefixTable.build(SPACE, CODES + 1)
    assert [rows.shape for rows in other.bits] == [rows.shape for rows in table.bits]
    engine.set_masks(other)
    other.discard(CODES[::2] + 1)
    engine.update_masks(other.slots(CODES[::2] + 1))
    assert counting.recordings == len(BUCKETS)
    asked = prompts_of([2, 9])
    assert_same_drafts(engine.draft(asked), TorchEngine(model_of(), other, 20, "cpu").draft(asked))


@pytest.mark.usefixtures("copies")
def test_a_table_of_another_size_has_all_recorded_again_before_it_is_used() -> None:
    counting = Counting()
    engine = TorchEngine(
        model_of(), PrefixTable.build(SPACE, CODES, spare=0), 20, "cpu", buckets=BUCKETS, capture=counting
    )
    engine.warm_up(prompts_of([3])[0], 4)
    larger = PrefixTable.build(SPACE, np.arange(SPACE.size))
    engine.set_masks(larger)
    assert counting.recordings == 2 * len(BUCKETS)
    asked = prompts_of([4, 4, 1])
    assert_same_drafts(engine.draft(asked), TorchEngine(model_of(), larger, 20, "cpu").draft(asked))
    with pytest.raises(ValueError, match="is in no bucket"):
        engine.draft(prompts_of([1] * 5))
    assert counting.recordings == 2 * len(BUCKETS)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("buckets", [None, BUCKETS])
def test_masks_and_rules_that_were_first_used_in_a_draft_can_be_changed(buckets: Buckets | None) -> None:
    table, options = PrefixTable.build(SPACE, CODES), {"capture": call_again} if buckets else {}
    engine = TorchEngine(model_of(), table, 20, "cpu", buckets=buckets, rule_bytes=1 << 16, **options)
    asked = prompts_of([3, 8])
    engine.draft(asked)
    mask = engine.rule_masks.build(CODES[::3])
    engine.update_rules(engine.rule_masks.rows(mask))
    table.discard(CODES[:9])
    engine.update_masks(table.slots(CODES[:9]))
    drafts = engine.draft(asked, rules=[mask, None])
    found = [
        set(codes[np.isfinite(scores)].tolist()) for codes, scores in zip(drafts.codes, drafts.scores, strict=True)
    ]
    assert found[0] <= set(CODES[9::3].tolist()) and found[0]
    assert found[1] <= set(CODES[9:].tolist()) and not found[1] <= found[0]


def test_answers_are_not_overwritten_by_the_next_call() -> None:
    engine = TorchEngine(model_of(), PrefixTable.build(SPACE, CODES), 20, "cpu", buckets=BUCKETS, capture=call_again)
    first = engine.draft(prompts_of([3]))
    kept = first.codes.copy()
    second = engine.draft(prompts_of([2, 2])[1:])  # of the same bucket
    assert not np.array_equal(second.codes, kept)
    np.testing.assert_array_equal(first.codes, kept)


def test_the_golden_request_is_answered_from_a_recording_in_the_served_precision(bundle: Bundle) -> None:
    buckets = Buckets.up_to(bundle.layout.max_tokens, 4)
    engine = open_engine(bundle, "torch", device="cpu", precision="bf16", buckets=buckets, capture=call_again)
    engine.warm_up(bundle.golden["prompt"], 4)
    check_drafts(bundle.golden, engine)
    assert engine.score_tolerance == 0.25
    scores = engine.draft([bundle.golden["prompt"]]).scores[0]
    assert not np.array_equal(scores, bundle.golden["scores"]), "this ran in float32"


@pytest.mark.parametrize(("text", "expected"), [("none", None), ("1,4x20,40", BUCKETS), ("auto", Buckets.up_to(40, 4))])
def test_buckets_are_named_by_a_deployment(text: str, expected: Buckets | None) -> None:
    assert Buckets.of(text, 40, 4) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "buckets 'all': must be auto, none, or sizes of batches and lengths in tokens, as 1,4,16x64,128"),
        ("1,2x", "must be auto, none"),
        ("4,1x40", r"batches \(4, 1\) must be rising sizes"),
        ("1,2x40", r"the largest holds 2 prompts of 40 tokens, but there may be 4 \(max-batch-size\) of 40"),
        ("1,4x32", r"holds 4 prompts of 32 tokens, but there may be 4 .* of 40 \(the bundle's longest prompt\): add"),
    ],
)
def test_buckets_that_do_not_hold_every_batch_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Buckets.of(text, 40, 4)


def test_a_deployments_buckets_are_recorded_on_a_gpu_only(bundle: Bundle) -> None:
    engine = open_engine(bundle, "torch", device="cpu", precision="auto", buckets="auto", max_batch_size=4)
    assert isinstance(engine, TorchEngine) and engine._buckets is None and engine.precision == "f32"
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device, not cpu: leave the buckets out"):
        open_engine(bundle, "torch", device="cpu", buckets="4x64", max_batch_size=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"device cuda:1: torch .* sees 0 GPUs here; look at nvidia-smi"):
        device_of("cuda:1")
