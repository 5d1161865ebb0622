import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec.catalog import SemanticIdSpace
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import backbone_config
from genrec.model.draft_head import History
from genrec.model.nezha import NezhaModel
from genrec.prompt import PromptLayout
from genrec_builders.config import TrainingConfig
from genrec_builders.training.examples import PackedWindows, QueryPrompts, make_windows
from genrec_builders.training.loop import Curves, parameter_groups, train
from genrec_builders.training.objective import (
    TAUGHT,
    AutoregressiveObjective,
    NezhaObjective,
    Objective,
    PackedBatch,
    PromptBatch,
    add_dropout,
    dropped,
    freeze_backbone,
)
from genrec_builders.training.query import EncodedQueries

SPACE = SemanticIdSpace((8, 8))
LAYOUT = PromptLayout.contiguous(SPACE, max_history=6, max_query=3, text_tokens=5)
MARKED = replace(LAYOUT, markers=(LAYOUT.vocabulary_size, LAYOUT.vocabulary_size + 1))
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


def new_objective(
    kind: str = "nezha", seed: int = 0, auxiliary_weight: float = 0.5, layout: PromptLayout = LAYOUT
) -> Objective:
    torch.manual_seed(seed)
    config = backbone_config(
        "qwen3", vocab_size=layout.vocabulary_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    if kind == "nezha":
        model = NezhaModel(config, SPACE.levels, 12, 24, 3)
        torch.nn.init.normal_(model.draft_head.transition_mixes[0].weight)  # zero at first: history would not matter
        return NezhaObjective(model, layout, auxiliary_weight)
    return AutoregressiveObjective(AutoregressiveModel(config, layout.sid_tokens), replace(layout, placeholders=()))


def sequences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 15, 60)
    # Each item is followed by the next row: something to learn.
    rows = np.concatenate([(rng.integers(40) + np.arange(size)) % 40 for size in sizes]).astype(np.int32)
    return np.cumsum([0, *sizes]), rows


def packed(objective: Objective) -> PackedWindows:
    return PackedWindows(make_windows(*sequences(), LAYOUT.max_history), SIDS, objective.layout)


@pytest.mark.parametrize("layout", [LAYOUT, MARKED], ids=["plain", "markers"])
@pytest.mark.parametrize("kind", ["nezha", "autoregressive"])
def test_loss_of_a_packed_row_counts_only_its_targets_and_is_that_of_their_prompts(
    kind: str, layout: PromptLayout
) -> None:
    objective = new_objective(kind, auxiliary_weight=0.0, layout=layout).eval()
    sids = SIDS[np.random.default_rng(2).integers(0, 40, (3, 5))]
    counted = np.zeros((3, 4), bool)
    counted[1, 2] = counted[2, 0] = True
    prompts = [objective.layout.encode(sids[1, :3]), objective.layout.encode(sids[2, :1])]
    with torch.no_grad():
        loss = objective(PackedBatch(sids, counted))
        expected = objective(PromptBatch(prompts, np.stack([sids[1, 3], sids[2, 1]])))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_loss_of_a_prompt_is_the_cross_entropy_of_what_serving_computes() -> None:
    head, plain = new_objective().eval(), new_objective("autoregressive").eval()
    history, target = SIDS[[3, 7]], SIDS[9]
    with torch.no_grad():
        prompt = torch.from_numpy(LAYOUT.encode(history))[None]
        hidden, read = head.model.prefill(prompt, torch.tensor([prompt.shape[1]]))
        codes = torch.from_numpy(target[None, None].astype(np.int64))
        logits = head.model.draft_head.logits(hidden[:, None], codes, read)
        expected = [-each.log_softmax(-1)[0, 0, code].item() for each, code in zip(logits, target, strict=True)]
        loss = head(PromptBatch([LAYOUT.encode(history)], target[None]))
        assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)

        expected = []
        prompt = plain.layout.encode(history)
        for level, code in enumerate(target):
            tokens = torch.from_numpy(np.concatenate([prompt, plain.layout.tokens_of(target[None])[0, :level]]))[None]
            hidden, _ = plain.model.prefill(tokens, torch.tensor([tokens.shape[1]]))
            expected.append(-plain.model.level_logits(hidden[0, 0], level).log_softmax(-1)[code].item())
        loss = plain(PromptBatch([prompt], target[None]))
        assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("layout", [LAYOUT, MARKED], ids=["plain", "markers"])
def test_auxiliary_loss_is_next_token_prediction_on_the_histories_of_the_targets(layout: PromptLayout) -> None:
    with_it, without = (new_objective(auxiliary_weight=weight, layout=layout).eval() for weight in (1.0, 0.0))
    sids = SIDS[np.random.default_rng(2).integers(0, 40, (1, 5))]
    counted = np.array([[False, True, False, False]])  # the history of this target is items 0 and 1
    plain = AutoregressiveModel(with_it.model.config, layout.sid_tokens, with_it.model.model).eval()
    with torch.no_grad():
        auxiliary = with_it(PackedBatch(sids, counted)) - without(PackedBatch(sids, counted))
        losses = []
        tokens = np.concatenate([layout.opening, layout.history_tokens(sids[0, :2])]).astype(np.int64)
        for at, code in enumerate(sids[0, :2].ravel()):
            before = len(layout.opening) + at // 2 * layout.item_tokens + at % 2
            hidden, _ = plain.prefill(torch.from_numpy(tokens[:before])[None], torch.tensor([before]))
            losses.append(-plain.level_logits(hidden[0, 0], at % 2).log_softmax(-1)[code].item())
    assert auxiliary.item() == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("longest", [4, 300, 70_000])
def test_a_plan_is_sorted_by_length_and_random_within(longest: int) -> None:
    """As one sort by both keys gives it, whatever number the lengths fit in: runs that were cut off go on."""
    lengths = np.random.default_rng(1).integers(2, longest, 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    windows = make_windows(offsets, np.zeros(offsets[-1], np.int32), longest)
    plan = PackedWindows(windows, SIDS, LAYOUT).plan(5, 2, 1)  # one window in each batch
    rng = np.random.default_rng([5, 2])
    order = np.lexsort((rng.random(500), windows.length))[::-1]
    assert [int(batch[0]) for batch in plan] == order[rng.permutation(500)].tolist()


def test_query_prompts_hold_what_came_before_and_what_came_next() -> None:
    offsets, rows = sequences()
    rng = np.random.default_rng(3)
    lengths = np.array([0, 1, 3], np.int32)
    queries = EncodedQueries(rng.integers(0, 3, rows.size).astype(np.int32), rng.integers(25, 28, (3, 3)), lengths)
    source = QueryPrompts(offsets, rows, queries, SIDS, LAYOUT, packed_tokens=10**6, alone=0.3)
    seen: list[int] = []
    alone = 0
    for examples in source.plan(seed=0, epoch=1, tokens_per_batch=200):
        batch = source.batch(examples, seed=0, epoch=1)
        assert sum(map(len, batch.prompts)) <= 200
        for at, prompt, target in zip(examples, batch.prompts, batch.targets, strict=True):
            user = np.searchsorted(offsets, at, "right") - 1
            history = rows[offsets[user] : at][-LAYOUT.max_history :]
            query = queries.tokens[queries.which[at], : lengths[queries.which[at]]]
            whole, bare = LAYOUT.encode(SIDS[history], query), LAYOUT.encode(SIDS[:0], query)
            assert np.array_equal(prompt, whole) or np.array_equal(prompt, bare)
            alone += np.array_equal(prompt, bare) and len(history) > 0
            np.testing.assert_array_equal(target, SIDS[rows[at]])
        seen += examples.tolist()
    assert sorted(seen) == np.flatnonzero(queries.which > 0).tolist()
    assert 0.15 < alone / len(seen) < 0.45
    few = QueryPrompts(offsets, rows, queries, SIDS, LAYOUT, packed_tokens=1000, share=0.5)
    tokens = sum(sum(map(len, few.batch(e, 0, 0).prompts)) for e in few.plan(0, 0, 200))
    assert 200 < tokens <= 500


@pytest.mark.training
@pytest.mark.parametrize("kind", ["nezha", "autoregressive"])
def test_training_learns_and_is_the_same_for_the_same_seed(kind: str) -> None:
    config = TrainingConfig(epochs=10, tokens_per_batch=512, learning_rate=1e-2)
    losses = []
    for _ in range(2):
        objective = new_objective(kind)
        losses.append(train(objective, [packed(objective)], config).losses)
    assert losses[0] == losses[1]  # to the last bit: the same calls in one process
    assert losses[0][-1] < 0.6 * losses[0][0]


class Interrupted(Exception):
    pass


@pytest.mark.training
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=3, tokens_per_batch=512, dropout=0.2)

    def run(objective: Objective, *more: object) -> Curves:
        def validate() -> float:
            return -objective.model.input_embeddings().detach().square().sum().item()

        return train(objective, [packed(objective)], config, validate, *more)

    whole = new_objective()
    curves = run(whole)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 1:
            time.sleep(1)
        if step == steps // 2:
            raise Interrupted

    state = tmp_path / "training.pt"
    with pytest.raises(Interrupted):
        run(new_objective(), state, stop, 0)
    steps: list[int] = []
    resumed = new_objective(seed=9)
    began = time.monotonic()
    ended = run(resumed, state, lambda step, total, loss: steps.append(step))
    assert ended == curves
    assert steps[0] > 1
    assert ended.seconds > time.monotonic() - began  # what was spent before the interruption counts
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # A finished run has nothing left to do; a state of other settings is not taken up, nor replaced.
    steps.clear()
    assert run(resumed, state, lambda step, *_: steps.append(step)).seconds >= ended.seconds
    assert steps == []
    config = replace(config, seed=5)
    with pytest.raises(ValueError, match="seed 0, now 5"):
        run(new_objective(), state)


@pytest.mark.training
def test_stops_early_and_keeps_the_best_epoch() -> None:
    objective = new_objective()
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    snapshots: list[torch.Tensor] = []

    def validate() -> float:
        snapshots.append(objective.model.input_embeddings().detach().clone())
        return next(scores)

    curves = train(objective, [packed(objective)], TrainingConfig(epochs=5, tokens_per_batch=512, patience=2), validate)
    assert curves.validation == [0.1, 0.3, 0.2, 0.25] and len(curves.losses) == 4 and curves.best_epoch == 1
    torch.testing.assert_close(objective.model.input_embeddings().data, snapshots[1], rtol=0, atol=0)


def test_learning_rates_of_the_draft_heads_parts() -> None:
    objective = new_objective()
    config = TrainingConfig(
        learning_rate=1e-3, code_embedding_scale=100, transition_scale=10, projection_scale=2, weight_decay=0.1
    )
    groups = parameter_groups(objective.model, config)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = dict(objective.model.named_parameters())
    assert len(rates) == len(named)
    for name, expected in {
        "draft_head.embeddings.0.weight": (0.1, 0.0),
        "draft_head.transition_inputs.0.weight": (0.01, 0.1),
        "draft_head.transition_inputs.0.bias": (0.01, 0.0),
        "draft_head.projections.1.weight": (0.002, 0.1),
        "draft_head.state_projections.1.weight": (0.002, 0.1),
        "model.layers.0.mlp.up_proj.weight": (0.001, 0.1),
        "model.norm.weight": (0.001, 0.0),
        "model.embed_tokens.weight": (0.001, 0.0),
    }.items():
        assert rates[id(named[name])] == pytest.approx(expected)


@pytest.mark.training
def test_a_frozen_backbone_keeps_all_but_the_placeholders_embeddings() -> None:
    objective = new_objective(auxiliary_weight=0.0)
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    train(objective, [packed(objective)], TrainingConfig(epochs=1, tokens_per_batch=512, freeze_backbone=True))
    changed = {name for name, tensor in objective.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if not name.startswith("draft_head.")} == {"model.embed_tokens.weight"}
    assert any(name.startswith("draft_head.") for name in changed)
    after = objective.model.input_embeddings()
    rows = (after != before["model.embed_tokens.weight"]).any(1).nonzero().flatten().tolist()
    assert rows == list(LAYOUT.placeholders)


@pytest.mark.parametrize("layout", [LAYOUT, MARKED], ids=["plain", "markers"])
def test_a_frozen_backbones_loss_and_gradients_are_those_of_the_whole_pass(layout: PromptLayout) -> None:
    """Though only the placeholders' pass has gradients."""
    objective = new_objective(auxiliary_weight=0.0, layout=layout).eval()
    assert isinstance(objective, NezhaObjective)
    counted = np.zeros((3, 4), bool)
    counted[:, -1] = True  # the last items, of which the backbone says nothing in a packed row
    batch = PackedBatch(SIDS[np.random.default_rng(2).integers(0, 40, (3, 5))], counted)
    whole = objective(batch)
    whole.backward()
    places = list(layout.placeholders)
    expected = objective.model.input_embeddings().grad[places].clone()  # type: ignore[index]
    write = freeze_backbone(objective)
    trained = objective.model.placeholder_embeddings
    loss = objective(batch)
    loss.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-5)
    torch.testing.assert_close(trained.grad, expected, rtol=1e-4, atol=1e-6)
    torch.nn.init.ones_(trained)
    changed = objective(batch).item()
    write()
    assert objective(batch).item() == pytest.approx(changed, abs=1e-5) and changed != whole.item()
    assert "placeholder_embeddings" not in objective.model.state_dict()


@pytest.mark.parametrize("layout", [LAYOUT, MARKED, replace(LAYOUT, prefix=())], ids=["plain", "markers", "bare"])
def test_a_frozen_backbone_teaches_what_its_beam_search_would_score(layout: PromptLayout) -> None:
    objective = new_objective(auxiliary_weight=0.0, layout=layout).eval()
    assert isinstance(objective, NezhaObjective)
    sids = SIDS[np.random.default_rng(2).integers(0, 40, (1, 4))]
    counted = np.array([[True, False, True]])  # item 1, which the backbone can tell, and the last one
    plain = AutoregressiveModel(objective.model.config, layout.sid_tokens, objective.model.model).eval()
    hard = objective(PackedBatch(sids, counted)).item()
    prompt = replace(layout, placeholders=()).encode(sids[0, :1])
    soft = []
    with torch.no_grad():
        tokens = torch.from_numpy(layout.encode(sids[0, :1]))[None]
        hidden, read = objective.model.prefill(tokens, torch.tensor([tokens.shape[1]]))
        logits = objective.model.draft_head.logits(hidden[:, None], torch.from_numpy(sids[:, 1:2]).long(), read)
        for level in range(2):
            before = torch.from_numpy(np.concatenate([prompt, layout.tokens_of(sids[0, 1])[:level]]))[None]
            states, _ = plain.prefill(before, torch.tensor([before.shape[1]]))
            taught = plain.level_logits(states[0, 0], level).softmax(-1)
            soft.append(-(taught * logits[level][0, 0].log_softmax(-1)).sum().item())
        freeze_backbone(objective)
        found = objective(PackedBatch(sids, counted)).item()
    assert found == pytest.approx(TAUGHT * np.mean(soft) + (1 - TAUGHT) * hard, abs=1e-5)


def test_beam_search_has_no_head_to_train_alone() -> None:
    objective = new_objective("autoregressive")
    with pytest.raises(ValueError, match="a draft head alone is trained, and this decoder has none"):
        train(objective, [packed(objective)], TrainingConfig(epochs=1, freeze_backbone=True))


@pytest.mark.parametrize(("backbone", "head"), [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_acts_in_training_alone_and_can_be_taken_out(backbone: float, head: float) -> None:
    objective = new_objective()
    batch = PackedBatch(SIDS[:10].reshape(2, 5, 2), np.ones((2, 4), bool))
    take_out = add_dropout(objective.model, backbone, head)
    assert objective.train()(batch).item() != objective.train()(batch).item()
    assert objective.eval()(batch).item() == objective.eval()(batch).item()
    take_out()
    assert objective.train()(batch).item() == pytest.approx(objective.eval()(batch).item(), abs=1e-6)


def test_dropout_of_the_head_reaches_every_level_and_leaves_the_backbone_alone() -> None:
    model = new_objective().model.train()
    add_dropout(model, 0.0, 0.5)
    hidden, codes = torch.randn(7, 1, SPACE.depth + 1, 16), torch.zeros(7, 1, SPACE.depth, dtype=torch.int64)
    history = History(torch.randn(7, 5, 16), torch.ones(1, 1, 5, dtype=torch.bool))
    for one, other in zip(*(model.draft_head.logits(hidden, codes, history) for _ in range(2)), strict=True):
        assert (one != other).any(-1).all()
    states = [model.causal_states(torch.arange(8)[None])[0] for _ in range(2)]
    assert torch.equal(*states)


@pytest.mark.training
def test_two_processes_share_the_batches_and_end_with_the_same_weights(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from accelerate import PartialState
from test_train import TrainingConfig, new_objective, packed, train
objective, steps = new_objective(), []
curves = train(objective, [packed(objective)], TrainingConfig(epochs=2, tokens_per_batch=512, dropout=0.0),
               progress=lambda step, total, loss: steps.append(total))
rank = PartialState().process_index
torch.save((objective.model.state_dict(), curves.losses, steps[0]), {str(tmp_path)!r} + f"/{{rank}}.pt")
"""
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "run.py")]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    (first, losses, steps), (second, other_losses, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert losses != other_losses, "both processes saw the same batches"
    alone = new_objective()
    whole = packed(alone).plan(0, 0, 512), packed(alone).plan(0, 1, 512)
    assert steps == sum(len(plan) // 2 for plan in whole)
    assert not torch.equal(first["model.embed_tokens.weight"], alone.model.input_embeddings())


def test_dropout_keeps_the_mean_and_drops_the_share_asked_for() -> None:
    torch.manual_seed(0)
    values = torch.ones(300, 1001, requires_grad=True)
    for probability in (0.1, 0.5, 0.9):
        result = dropped(values, probability)
        lost = (result == 0).float()
        assert abs(lost.mean() - probability) < 0.005 and abs(result.mean() - 1) < 0.01
        assert abs(lost[:, ::8].mean() - probability) < 0.01  # bytes of one number are independent of each other
        assert abs((lost[:, 1:] * lost[:, :-1]).mean() - probability**2) < 0.005
        (gradient,) = torch.autograd.grad(result.sum(), values)
        assert torch.equal(gradient, result)
    assert torch.equal(dropped(values, 0.0), values)
    assert dropped(values.bfloat16(), 0.1).dtype == torch.bfloat16
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropped(values, 0.1))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
