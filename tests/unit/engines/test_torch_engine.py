"""The PyTorch engine's options: half precision, shared heads in one kernel, recordings of buckets of shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genrec.bundle import Bundle
from genrec.catalog import PrefixTable, SemanticIdSpace
from genrec.engines import open_engine
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import CudaGraphs, RecordedDraft, call_again
from genrec.engines.torch import TorchEngine
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.fused import CausalAttention
from genrec.model.layers import LayerCache
from genrec.model.masks import Masks, Rules
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import BackboneShape
from tests.captures import Counting
from tests.near import assert_same_drafts

SPACE = SemanticIdSpace((9, 12, 7))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=12)
TABLE = PrefixTable.build(SPACE, np.random.default_rng(0).integers(0, SPACE.size, 120))
DECODERS = ("draft_head", "beam_search")
CPU = torch.device("cpu")


def model_of(decoder: str = "draft_head", kv_heads: int = 2) -> BackboneModel:
    torch.manual_seed(0)
    shape = BackboneShape(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=kv_heads, head_dim=8)
    config = shape.config(LAYOUT)
    if decoder == "beam_search":
        model: BackboneModel = AutoregressiveModel(config, LAYOUT.sid_tokens)
    else:
        model = NezhaModel(config, SPACE.levels, 24, 48, 3)
    for parameter in model.parameters():  # far from symmetric, so that a wrong wiring shows; with 0.3, logits reach 500
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def layout_of(decoder: str) -> PromptLayout:
    return replace(LAYOUT, placeholders=()) if decoder == "beam_search" else LAYOUT


def prompts_of(decoder: str, items: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [layout_of(decoder).encode(rng.integers(0, SPACE.levels, (count, 3))) for count in items]


@given(st.integers(1, 6000), st.integers(1, 40), st.data())
def test_buckets_hold_what_they_are_made_for_with_little_padding(tokens: int, batch: int, data: st.DataObject) -> None:
    buckets = Buckets.up_to(tokens, batch)
    assert buckets.holding(batch, tokens) == (batch, tokens)
    assert buckets.holding(batch + 1, tokens) is None and buckets.holding(batch, tokens + 1) is None
    rows, columns = data.draw(st.integers(1, batch)), data.draw(st.integers(1, tokens))
    found = buckets.holding(rows, columns)
    assert found is not None and rows <= found[0] < 2 * rows
    assert columns <= found[1] <= max(64, 1.25 * columns)
    assert len(buckets) <= 6 * 33  # sizes double; four lengths an octave


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_draft_from_buckets_is_the_draft_without(decoder: str) -> None:
    model, counting = model_of(decoder), Counting()
    buckets = Buckets((1, 2, 4), (10, 17, 31))
    plain = TorchEngine(model, TABLE, 20, "cpu")
    recorded = TorchEngine(model, TABLE, 20, "cpu", buckets=buckets, capture=counting)

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.booleans(), st.integers(0, 99))
    def check(items: list[int], masked: bool, seed: int) -> None:
        prompts = prompts_of(decoder, items, seed)
        ours, theirs = recorded.draft(prompts, masked=masked), plain.draft(prompts, masked=masked)
        assert ours.codes.shape == (len(items), 20)
        assert_same_drafts(ours, theirs)

    check()
    assert 0 < counting.recordings <= 2 * len(buckets)  # with masks and without


def test_recordings_draft_with_the_masks_that_were_set_last() -> None:
    model, table = model_of(), PrefixTable.build(SPACE, np.arange(0, SPACE.size, 5))
    options: dict = {"buckets": Buckets((1,), (40,)), "capture": call_again}
    engine, prompts = TorchEngine(model, TABLE, 20, "cpu", **options), prompts_of("draft_head", [3])
    engine.draft(prompts)
    engine.set_masks(table)
    assert_same_drafts(engine.draft(prompts), TorchEngine(model, table, 20, "cpu").draft(prompts))
    table.discard(np.arange(0, SPACE.size, 10))
    engine.update_masks(table.slots(np.arange(0, SPACE.size, 10)))
    drafts = engine.draft(prompts)
    assert (drafts.codes[np.isfinite(drafts.scores)] % 10 == 5).all()
    assert_same_drafts(drafts, TorchEngine(model, table, 20, "cpu").draft(prompts))


def test_a_bucket_is_recorded_once_and_what_fits_none_is_not() -> None:
    counting, seen = Counting(), []

    def draft(token_ids: Tensor, lengths: Tensor, rule_rows: Tensor) -> tuple[Tensor, ...]:
        seen.append((token_ids.clone(), lengths.clone(), rule_rows.clone()))
        return (token_ids.sum(1),)

    def rules(batch: int) -> Tensor:
        return torch.arange(6 * batch).reshape(batch, 6)

    recorded = RecordedDraft(draft, Buckets((2, 4), (5, 8)), CPU, counting)
    tokens = torch.arange(1, 13, dtype=torch.int32).reshape(3, 4)
    (answer,) = recorded(tokens, torch.tensor([4, 2, 3], dtype=torch.int32), rules(3))
    assert answer.tolist() == tokens.sum(1).tolist()
    padded, lengths, rows = seen[-1]
    assert padded.shape == (4, 5) and lengths.tolist() == [4, 2, 3, 4]
    assert rows.tolist() == [*rules(3).tolist(), rules(1)[0].tolist()]
    assert padded[:3, :4].equal(tokens) and padded[3, :4].equal(tokens[0]) and not padded[:, 4].any()
    for batch, columns in ((4, 5), (3, 1), (4, 2)):  # what an earlier call left in the buffers is gone
        recorded(torch.ones(batch, columns, dtype=torch.int32), torch.full((batch,), columns).int(), rules(batch))
        assert seen[-1][0].sum() == 4 * columns
    assert counting.recordings == 1
    for shape in ((5, 4), (1, 9)):
        recorded(torch.zeros(shape, dtype=torch.int32), torch.ones(shape[0]).int(), rules(shape[0]))
        assert seen[-1][0].shape == shape
    assert counting.recordings == 1
    recorded(torch.zeros(2, 8, dtype=torch.int32), torch.full((2,), 8).int(), rules(2))
    assert counting.recordings == 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_half_precision_is_close_and_ends_in_float32(decoder: str, kv_heads: int) -> None:
    prompts = prompts_of(decoder, [1, 12, 5, 7, 3, 9, 2, 4])
    exact = TorchEngine(model_of(decoder, kv_heads), TABLE, 30, "cpu").draft(prompts)
    engine = TorchEngine(model_of(decoder, kv_heads), TABLE, 30, "cpu", "bf16")
    half = engine.draft(prompts)
    assert half.scores.dtype == np.float32
    assert not np.array_equal(half.scores, exact.scores), "this ran in float32"
    overlap = np.mean([np.isin(a[:10], b[:10]).mean() for a, b in zip(half.codes, exact.codes, strict=True)])
    assert overlap >= 0.85
    assert engine._model.input_embeddings().dtype == torch.bfloat16
    head = [parameter for name, parameter in engine._model.named_parameters() if name.startswith("draft_head")]
    assert all(parameter.dtype == torch.float32 for parameter in head)


def test_a_trained_bundle_answers_its_golden_request_in_half_precision(bundle: Bundle) -> None:
    from genrec.golden import check_drafts

    engine = open_engine(bundle, "torch", device="cpu", precision="bf16")
    check_drafts(bundle.golden, engine)
    prompts = [bundle.layout.encode(bundle.catalog.sids[first : first + 5]) for first in range(0, 200, 5)]
    ours, theirs = engine.draft(prompts), open_engine(bundle, "torch", device="cpu").draft(prompts)
    assert np.mean([np.isin(a[:10], b[:10]).mean() for a, b in zip(ours.codes, theirs.codes, strict=True)]) >= 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_one_kernel_for_shared_heads_is_attention_written_out(groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, size, heads = 23, 8, 6
    queries = torch.randn(2, rows, heads * size, dtype=dtype)
    keys, values = torch.randn(2, 2, rows, groups * size, dtype=dtype)
    found = CausalAttention.apply(queries, keys, values, groups, 0.3)
    q, k, v = (each.float().unflatten(-1, (-1, size)).transpose(1, 2) for each in (queries, keys, values))
    k, v = (each.repeat_interleave(heads // groups, 1) for each in (k, v))
    hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    expected = (0.3 * q @ k.transpose(2, 3)).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected.transpose(1, 2).flatten(2), rtol=tolerance, atol=tolerance)


def test_a_prefill_keeps_nothing_of_the_size_of_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []
    made = LayerCache.__init__
    monkeypatch.setattr(LayerCache, "__init__", lambda self, *parts: (caches.append(self), made(self, *parts))[1])
    rows = 61

    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            out = function(*arguments, **(options or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            Largest.values = max(Largest.values, *sizes, 0)
            return out

    model = model_of()
    with torch.inference_mode(), Largest():
        model.read_prompts(torch.ones(1, rows, dtype=torch.int32), torch.tensor([rows]), 4, keep=False)
    assert len(caches) == 1  # of the last layer
    assert Largest.values < 4 * rows * rows  # scores of every head


class OtherDevices(TorchDispatchMode):
    """Notes every operator that meets a tensor outside of `meta`: such a copy waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        out = function(*arguments, **(options or {}))
        leaves = tree_leaves((arguments, options, out))
        if any(isinstance(leaf, Tensor) and leaf.device.type != "meta" for leaf in leaves):
            self.met.append(str(function))
        return out


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_neither_waits_for_the_device_nor_has_shapes_that_depend_on_data(
    decoder: str, dtype: torch.dtype
) -> None:
    # Tensors on `meta` have no values: an operator that asks for one raises.
    model = model_of(decoder).to("meta")
    model.model.to(dtype)
    rules = Rules(torch.zeros(9, 32, dtype=torch.uint8, device="meta"), torch.zeros(3, 6, device="meta").long())
    masks = Masks.of(TABLE, "meta")._replace(rules=rules)
    prompts = torch.zeros(3, 31, dtype=torch.int32, device="meta"), torch.zeros(3, dtype=torch.int32, device="meta")
    with torch.no_grad():
        model.draft(*prompts, masks, 20)  # tables that are copied to a device once
        with OtherDevices() as watch:
            model.draft(*prompts, masks, 20)
            assert watch.met == []
            torch.zeros(1, device="cpu").to("meta")
            assert watch.met


@pytest.mark.training
def test_the_prefill_can_be_compiled_as_one_graph() -> None:
    model = model_of()
    model.model.to(torch.bfloat16)
    assert isinstance(model, NezhaModel)
    prompts = torch.ones(2, 20, dtype=torch.int32), torch.tensor([20, 11])
    compiled = torch.compile(model.prefill, fullgraph=True, dynamic=False, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*prompts), model.prefill(*prompts))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is unknown; use one of f32, bf16"),
        ({"buckets": Buckets((1,), (64,))}, "CUDA graphs need a CUDA device, not cpu: leave the buckets out"),
        (
            {"buckets": Buckets((1,), (32, 513)), "capture": call_again},
            "length 513 is above the model's 512 positions; leave it out",
        ),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TorchEngine(model_of(), TABLE, 20, "cpu", **options)


@pytest.mark.parametrize("sizes", [(), (0, 4), (4, 2), (2, 2)])
def test_bad_buckets_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"batches .* must be rising sizes of at least 1"):
        Buckets(sizes, (8,))
    with pytest.raises(ValueError, match=r"lengths .* must be rising sizes of at least 1"):
        Buckets((1,), sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_cuda_graphs_answer_as_the_pass_that_they_record(decoder: str, precision: str) -> None:
    model, buckets = model_of(decoder), Buckets((1, 4), (20, 40))
    plain = TorchEngine(model, TABLE, 20, "cuda", precision)
    graphs = TorchEngine(model, TABLE, 20, "cuda", precision, buckets, CudaGraphs(torch.device("cuda")))
    for items in ([12, 3, 7], [5], [1, 2, 3, 4], [12, 3, 7]):
        prompts = prompts_of(decoder, items, seed=len(items))
        ours, theirs = graphs.draft(prompts), plain.draft(prompts)
        rounding = 1e-4 if precision == "f32" else 5e-2  # a padded batch may take other kernels
        np.testing.assert_allclose(ours.scores[:, :10], theirs.scores[:, :10], rtol=rounding, atol=rounding)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recordings_on_a_gpu_see_what_was_copied() -> None:
    model, some = model_of(), np.arange(0, SPACE.size, 5)
    table = PrefixTable.build(SPACE, some)
    engine = TorchEngine(model, table, 20, "cuda", buckets=Buckets((1,), (40,)))
    prompts = prompts_of("draft_head", [3])
    engine.draft(prompts)
    table.discard(some[::2])
    table.add(some[::2] + 1)
    engine.update_masks(table.slots(np.append(some[::2], some[::2] + 1)))
    drafts = engine.draft(prompts)
    assert np.isin(drafts.codes[np.isfinite(drafts.scores)] % 10, (1, 5)).all()
