"""The engine over the LLM API's test double: parity, reuse, in-flight batching, deadlines, cancellation, errors."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from genrec.bundle import TENSORRT_LLM, Bundle
from genrec.catalog import PrefixTable
from genrec.engines import open_engine
from genrec.engines.tensorrt_llm.contract import CODES, LLM_ARGUMENTS, SCORES
from genrec.engines.tensorrt_llm.folder import read_folder
from genrec.errors import Cancelled, DeadlineExceeded
from genrec.golden import check_drafts
from tests.near import assert_same_drafts

Start = Callable[..., Any]
REUSE = {"enable_block_reuse": True, "enable_partial_reuse": True}


@pytest.fixture
def prompts(exported: Bundle) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    sids = exported.catalog.sids
    return [exported.layout.encode(sids[rng.integers(0, len(sids), rng.integers(1, 40))]) for _ in range(60)]


def test_the_engine_drafts_what_the_pytorch_engine_drafts(
    start: Start, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine = start()
    prompts.insert(3, np.empty(0, np.int32))  # nothing known of the user: never reaches the model
    assert_same_drafts(engine.draft(prompts), open_engine(exported, "torch").draft(prompts))
    check_drafts(exported.golden, engine)
    assert any(contexts > 1 for contexts, _, _, _ in engine._llm.steps), "no batch was packed"
    assert sum(contexts for contexts, _, _, _ in engine._llm.steps) == 61


def test_every_request_asks_for_the_outputs_and_one_token(start: Start, prompts: list[np.ndarray]) -> None:
    engine = start()
    engine.draft(prompts[:5])
    for request in engine._llm.requests:
        assert request.sampling.additional_model_outputs == [CODES, SCORES]
        assert (request.sampling.max_tokens, request.sampling.end_id, request.salt) == (1, -1, None)


@pytest.mark.parametrize("as_decode", [False, True])
@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("reads", ["history", "tail"])
def test_reuse_never_hides_what_the_head_reads(
    start: Start,
    stand_in: Any,
    monkeypatch: pytest.MonkeyPatch,
    exported: Bundle,
    exported_tail_only: Bundle,
    prompts: list[np.ndarray],
    reads: str,
    partial: bool,
    as_decode: bool,
) -> None:
    """The same prompts again: all but a token of each is cached, or all whole blocks."""
    monkeypatch.setattr(stand_in.LLM, "one_token_as_decode", as_decode)
    block, bundle = 4, exported if reads == "history" else exported_tail_only
    engine = start(bundle, kv_cache_config=REUSE | {"enable_partial_reuse": partial, "tokens_per_block": block})
    expected = open_engine(bundle, "torch").draft(prompts)
    assert_same_drafts(engine.draft(prompts), expected)
    before = len(engine._llm.requests)
    assert_same_drafts(engine.draft(prompts), expected)
    again = engine._llm.requests[before:]
    short = [len(p) - 1 if partial else (len(p) - 1) // block * block for p in prompts]
    count = exported.space.depth + 1
    needed = [len(p) if reads == "history" else count for p in prompts]
    resubmitted = sum(len(p) - cached < least for p, cached, least in zip(prompts, short, needed, strict=True))
    salts = [request.salt for request in again if request.salt is not None]
    assert len(salts) == len(set(salts)) == resubmitted > 0
    assert len(again) == len(prompts) + resubmitted
    assert all(request.cached == 0 for request in again if request.salt is not None)
    if as_decode and partial:
        assert any(decodes for _, decodes, _, _ in engine._llm.steps)


def test_without_reuse_nothing_is_asked_twice(start: Start, prompts: list[np.ndarray]) -> None:
    engine = start()
    for _ in range(2):
        engine.draft(prompts)
    assert len(engine._llm.requests) == 2 * len(prompts)
    assert all(request.cached == 0 for request in engine._llm.requests)


def test_a_growing_history_computes_its_new_items_alone(start: Start, exported_tail_only: Bundle) -> None:
    engine = start(exported_tail_only, kv_cache_config=REUSE)
    history, layout = exported_tail_only.catalog.sids[:8], exported_tail_only.layout
    for size in range(1, 9):
        engine.draft([layout.encode(history[:size])])
    assert len(engine._llm.requests) == 8, "new items push the placeholders on: no tail is cached"
    new = [tokens for _, _, tokens, _ in engine._llm.steps]
    # A visit's placeholders stand where the next one's new item does, so an item and the placeholders are new.
    assert new[1:] == [2 * exported_tail_only.space.depth] * 7


def test_padded_steps(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    monkeypatch.setattr(stand_in.LLM, "pad", 7)
    assert_same_drafts(start().draft(prompts), open_engine(exported, "torch").draft(prompts))


def test_a_deadline_aborts_the_request_and_no_other(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[np.ndarray]
) -> None:
    engine = start()
    monkeypatch.setattr(stand_in.LLM, "delay", 0.15)
    late = engine.submit(prompts[0], deadline_ns=time.monotonic_ns() + 40_000_000)
    patient = engine.submit(prompts[1], deadline_ns=time.monotonic_ns() + 30_000_000_000)
    with pytest.raises(DeadlineExceeded, match="timeout expired"):
        late.result(10)
    assert patient.result(10).codes.shape == (1, engine.beam_width)
    assert [request.aborted for request in engine._llm.requests] == [True, False]
    with pytest.raises(DeadlineExceeded):
        engine.submit(prompts[0], deadline_ns=time.monotonic_ns() - 1).result(10)


def test_a_cancelled_request_is_aborted(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[np.ndarray]
) -> None:
    engine = start()
    monkeypatch.setattr(stand_in.LLM, "delay", 0.2)
    with pytest.raises(Cancelled):
        engine.submit(prompts[0], cancelled=lambda: True).result(10)
    assert engine._llm.requests[0].aborted


def test_a_step_that_fails_fails_its_requests_and_the_next_ones_are_answered(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine = start()
    monkeypatch.setattr(stand_in.LLM, "fault", int(prompts[0][1]))
    with pytest.raises(stand_in.RequestError, match="device-side"):
        engine.submit(prompts[0]).result(10)
    monkeypatch.undo()
    assert_same_drafts(engine.draft(prompts[:3]), open_engine(exported, "torch").draft(prompts[:3]))


def test_prompts_at_the_limit_are_drafted_and_those_above_refused(start: Start, exported: Bundle) -> None:
    engine = start()
    sids = exported.catalog.sids
    longest = exported.layout.encode(sids[:40])
    assert len(longest) == exported.layout.max_tokens
    assert engine.submit(longest).result(10).codes.shape == (1, engine.beam_width)
    with pytest.raises(ValueError, match=f"{len(longest) + 1} tokens; the model takes at most {len(longest)}"):
        engine.submit(np.append(longest, 1))
    assert (engine.submit(longest[:0]).result(10).scores == -np.inf).all(), "an empty prompt has no drafts"
    vocabulary = exported.layout.vocabulary_size
    for wrong in (-1, vocabulary):
        with pytest.raises(ValueError, match=f"the model knows 0 to {vocabulary - 1}"):
            engine.submit(np.array([1, wrong, 2], np.int32))


def test_many_requests_are_in_flight_together(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[np.ndarray]
) -> None:
    engine = start()
    monkeypatch.setattr(stand_in.LLM, "delay", 0.01)
    futures = [engine.submit(prompt) for prompt in prompts]
    assert not wait(futures, 20).not_done
    assert max(contexts for contexts, _, _, _ in engine._llm.steps) == 8, "max_batch_size of the folder's arguments"


def test_closing_cancels_what_is_in_flight(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    monkeypatch.setattr(stand_in.LLM, "delay", 0.2)
    engine = open_engine(exported, "tensorrt_llm")
    future = engine.submit(prompts[0])  # type: ignore[attr-defined]
    engine.close()
    assert future.cancelled()


def test_masks_change_inside_the_model(start: Start, exported: Bundle, prompts: list[np.ndarray]) -> None:
    engine, untouched = start(), start()
    codes = np.unique(exported.space.encode(exported.catalog.sids))
    table = PrefixTable.build(exported.space, codes[::2])
    expected = open_engine(exported, "torch", device="cpu")
    before = expected.draft(prompts[:8])
    engine.set_masks(table)
    expected.set_masks(table)
    assert_same_drafts(engine.draft(prompts[:8]), expected.draft(prompts[:8]))
    table.add(codes[1::2])
    engine.update_masks(table.slots(codes[1::2]))
    for each in (engine, untouched):
        assert_same_drafts(each.draft(prompts[:8]), before)


def test_masks_of_a_model_in_another_process_cannot_change(
    start: Start, exported: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    monkeypatch.setattr(engine, "_models", set())
    with pytest.raises(RuntimeError, match="do not set TLLM_WORKER_USE_SINGLE_PROCESS to 0"):
        engine.set_masks(exported.masks)


def test_drafts_without_masks_are_refused(start: Start, prompts: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="masks only; use the onnx or torch engine"):
        start().draft(prompts[:1], masked=False)


def with_rules(engine: Any, prompts: list[np.ndarray], codes: list[np.ndarray | None]) -> Any:
    """Drafts of prompts under rules that allow some codes each, None all."""
    masks = [None if some is None else engine.rule_masks.build(some) for some in codes]
    return engine.draft(prompts, rules=masks)


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("reads", ["history", "tail"])
def test_requests_of_one_step_obey_their_own_rules(
    start: Start,
    stand_in: Any,
    monkeypatch: pytest.MonkeyPatch,
    exported: Bundle,
    exported_tail_only: Bundle,
    prompts: list[np.ndarray],
    reads: str,
    reuse: bool,
    pad: int,
) -> None:
    monkeypatch.setattr(stand_in.LLM, "pad", pad)
    bundle = exported if reads == "history" else exported_tail_only
    options = {"kv_cache_config": REUSE} if reuse else {}
    engine, reference = start(bundle, **options), open_engine(bundle, "torch", device="cpu")
    every = np.unique(bundle.space.encode(bundle.catalog.sids))
    some = [None, every[::3], every[:20], np.empty(0, np.int64)]
    codes = [some[at % 4] for at in range(20)]
    prompts[3] = np.empty(0, np.int32)
    for _ in range(2):  # the second time, what can be reused is in the cache
        assert_same_drafts(with_rules(engine, prompts[:20], codes), with_rules(reference, prompts[:20], codes))
    assert engine.takes_rules and any(contexts > 4 for contexts, _, _, _ in engine._llm.steps)
    assert_same_drafts(engine.draft(prompts[:9]), reference.draft(prompts[:9]))


def test_rules_of_a_copy_on_a_device_are_told(start: Start, exported: Bundle, prompts: list[np.ndarray]) -> None:
    engine, reference = start(), open_engine(exported, "torch", device="cpu")
    every = np.unique(exported.space.encode(exported.catalog.sids))
    (model,) = engine._models
    model._rules = model._rules._replace(bits=model._rules.bits.clone())
    model._device = Elsewhere()
    mask = engine.rule_masks.build(every[::3])
    engine.update_rules(engine.rule_masks.rows(mask))
    engine.rule_masks.add(mask, every[1:30:3])
    engine.update_rules(engine.rule_masks.rows(mask, every[1:30:3]))
    allowed = np.union1d(every[::3], every[1:30:3])
    theirs = with_rules(reference, prompts[:5], [allowed] * 5)
    assert np.isfinite(engine.draft(prompts[:5], rules=[mask] * 5).scores).any()
    np.testing.assert_array_equal(model._rules.bits.numpy(), engine.rule_masks.bits)
    future = engine.submit(prompts[0], rule=mask)
    ours = engine.draft(prompts[:5], rules=[mask] * 5)
    np.testing.assert_array_equal(future.result(10).codes[0], ours.codes[0])
    assert ours.codes.shape == theirs.codes.shape


class Elsewhere:
    """A device that is not the CPU, as far as copies go."""

    type = "elsewhere"


def test_more_rules_than_the_model_can_tell_apart_are_refused(
    start: Start, stand_in: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[np.ndarray]
) -> None:
    engine = start()
    mask = engine.rule_masks.build(np.arange(50))
    while len(engine._rule_tokens) > 2:
        engine._rule_tokens.pop()
    monkeypatch.setattr(stand_in.LLM, "delay", 0.1)
    futures = [engine.submit(prompts[0], rule=mask) for _ in range(2)]
    with pytest.raises(RuntimeError, match="too many requests with rules are in flight"):
        engine.submit(prompts[0], rule=mask)
    engine.submit(prompts[0]).result(10)
    assert not wait(futures, 10).not_done
    assert engine.submit(prompts[0], rule=mask).result(10).codes.shape == (1, engine.beam_width)


def test_rules_of_a_model_in_another_process_are_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, prompts: list[np.ndarray]
) -> None:
    engine = start()
    mask = engine.rule_masks.build(np.arange(50))
    monkeypatch.setattr(engine, "_models", set())
    for tell in (lambda: engine.submit(prompts[0], rule=mask), lambda: engine.update_rules(np.arange(2))):
        with pytest.raises(RuntimeError, match="nor rules be told; do not set TLLM_WORKER_USE_SINGLE_PROCESS to 0"):
            tell()


def test_a_folder_from_before_rules_serves_without_them(
    start: Start, exported: Bundle, prompts: list[np.ndarray]
) -> None:
    engine = start(max_seq_len=exported.layout.max_tokens + 1)
    assert not engine.takes_rules
    assert_same_drafts(engine.draft(prompts[:9]), open_engine(exported, "torch").draft(prompts[:9]))
    with pytest.raises(ValueError, match="takes no rules"):
        engine.submit(prompts[0], rule=np.array([[0, 1]] * exported.space.depth))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_chunked_prefill": True}, "enable_chunked_prefill is True; a chunk could cut apart .* Take it out"),
        ({"torch_compile_config": {"enable_piecewise_cuda_graph": True}}, "torch_compile_config is .* skips the hook"),
        ({"prefill_cuda_graph_backend": "breakable"}, "prefill_cuda_graph_backend is 'breakable'; a replay skips"),
        ({"enable_attention_dp": True}, "enable_attention_dp is True; its dummy requests ask for no outputs"),
        ({"quant_config": {"quant_algo": "NVFP4"}}, "quantised as nvfp4, .* Leave model.layers.1.self_attn"),
        ({"encode_only": True, "cuda_graph_config": {"x": 1}}, "cuda_graph_config is {'x': 1}; with encode_only"),
        ({"max_num_tokens": 10}, "max_num_tokens is 10, below the 64"),
        ({"max_seq_len": 64}, "max_seq_len is 64, below the 65"),
    ],
)
def test_arguments_that_would_hide_states_are_refused(
    stand_in: Any, exported: Bundle, change: dict[str, Any], message: str
) -> None:
    assert exported.layout.max_tokens == 64
    with pytest.raises(ValueError, match=message):
        open_engine(exported, "tensorrt_llm", **change)


def test_a_head_that_reads_no_history_goes_with_what_skips_hooks(
    stand_in: Any, exported: Bundle, exported_tail_only: Bundle
) -> None:
    compiled: dict[str, Any] = {"torch_compile_config": {"x": 1}, "prefill_cuda_graph_backend": "disabled"}
    folder = exported_tail_only.path / TENSORRT_LLM
    assert read_folder(folder, compiled, 64)[1]["torch_compile_config"] == {"x": 1}
    with pytest.raises(ValueError, match="torch_compile_config"):
        read_folder(exported.path / TENSORRT_LLM, compiled, 64)


@pytest.mark.parametrize(
    ("quantisation", "refused"),
    [
        ({"quant_algo": "FP8", "exclude_modules": ["draft_head*", "lm_head"]}, True),
        ({"quant_algo": "FP8", "exclude_modules": ["draft_head*", "model.layers.1.*"]}, False),
        ({"quant_algo": "W4A16_AWQ"}, False),
        ({"quant_algo": None, "kv_cache_quant_algo": "FP8"}, False),
    ],
)
def test_quantised_inputs_of_the_layer_that_is_read_are_refused(
    exported: Bundle, tmp_path: Path, quantisation: dict[str, Any], refused: bool
) -> None:
    for name in ("config.json", LLM_ARGUMENTS):
        (tmp_path / name).write_text((exported.path / TENSORRT_LLM / name).read_text())
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantisation}))
    if not refused:
        read_folder(tmp_path, {}, 64)
        return
    with pytest.raises(ValueError, match=r"quantised as fp8, and the inputs of model.layers.1.self_attn with them"):
        read_folder(tmp_path, {}, 64)


def test_inherited_variables_of_mpi_are_gone_before_the_import(
    stand_in: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_NAMESPACE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPIRE", "stays")
    seen: list[set[str]] = []

    class Noting(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            seen.append({key for key in os.environ if key.startswith(("OMPI", "PMIX"))})
            return getattr(stand_in, name)

    monkeypatch.setitem(sys.modules, "tensorrt_llm", Noting("tensorrt_llm"))
    start()
    assert seen and all(found == {"OMPIRE"} for found in seen)


def test_a_bundle_without_the_folder_says_how_to_make_it(stand_in: Any, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=r"config.json: is missing; make .* `genrec export-tensorrt-llm`"):
        open_engine(bundle, "tensorrt_llm")


def test_damaged_arguments_are_named(stand_in: Any, exported: Bundle, tmp_path: Path) -> None:
    from genrec.engines.tensorrt_llm.engine import TensorRtLlmEngine

    for name in ("config.json", LLM_ARGUMENTS):
        (tmp_path / name).write_text((exported.path / TENSORRT_LLM / name).read_text())
    for text in ("[1, 2]", "a: b: c"):
        (tmp_path / LLM_ARGUMENTS).write_text(text)
        with pytest.raises(ValueError, match="cannot be read"):
            TensorRtLlmEngine(tmp_path, exported.masks, 64, 64)
    assert yaml.safe_load((exported.path / TENSORRT_LLM / LLM_ARGUMENTS).read_text())["max_batch_size"] == 8


def test_outputs_may_come_as_a_list_of_steps() -> None:
    """As some releases give them, and with a row for a step that was not asked for."""
    import torch

    from genrec.engines.tensorrt_llm.engine import _first_row

    row, other = torch.arange(5)[None, None], torch.full((1, 1, 5), -2)
    for output in (row, torch.cat([row, other]), [row], [row, other], [row[0]], torch.cat([row[0], other[0]])):
        np.testing.assert_array_equal(_first_row(output), np.arange(5))
