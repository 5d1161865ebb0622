"""The curves of a training, read back from TensorBoard's files."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genrec_builders.config import TrainingConfig
from genrec_builders.training.loop import train
from genrec_builders.training.tracking import EVERY
from tests.needs import missing
from tests.unit.builders.training.test_train import SPACE, Interrupted, new_objective, packed

CONFIG = TrainingConfig(epochs=3, tokens_per_batch=256, learning_rate=1e-2, projection_scale=2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if importlib.util.find_spec("tensorboard") is None:
        missing("tensorboard is not installed: pip install 'genrec-builders[tracking]'")
    return tmp_path / "curves"


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of every curve, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def validation() -> Callable[[], float]:
    scores = iter([0.1, 0.3, 0.2])
    return lambda: next(scores)


@pytest.mark.training
def test_curves_hold_what_the_training_did(folder: Path) -> None:
    objective = new_objective()
    losses: list[float] = []
    train(
        objective,
        [packed(objective)],
        CONFIG,
        validation(),
        progress=lambda step, steps, loss: losses.append(loss),
        tensorboard=folder,
    )
    found = curves(folder)
    steps = len(losses)
    at = [step for step in range(1, steps + 1) if step % EVERY == 0 or step == steps]
    assert len(at) > 3
    levels = range(1, SPACE.depth + 1)
    names = {f"{name}/level {level}" for name in ("loss", "auxiliary loss") for level in levels}
    rates = {f"learning rate/{name}" for name in ("backbone", "code embeddings", "transitions", "projections")}
    assert found.keys() == names | rates | {
        "loss/total", "validation/ndcg@10", "speed/tokens per second", "speed/minutes left",
    }  # fmt: skip
    for name in found.keys() - {"validation/ndcg@10"}:
        assert [step for step, _ in found[name]] == at, name
    # NEZHA's loss is the mean of the head's levels and half of the auxiliary one's.
    means = {
        name: [sum(found[f"{name}/level {level}"][i][1] for level in levels) / SPACE.depth for i in range(len(at))]
        for name in ("loss", "auxiliary loss")
    }
    total = [value for _, value in found["loss/total"]]
    assert total == pytest.approx([losses[step - 1] for step in at], rel=1e-6)
    assert total == pytest.approx(
        [head + 0.5 * other for head, other in zip(means["loss"], means["auxiliary loss"], strict=True)], rel=1e-5
    )
    assert found["validation/ndcg@10"] == [
        (steps // 3 * (epoch + 1), pytest.approx(score)) for epoch, score in enumerate([0.1, 0.3, 0.2])
    ]
    for step, rate in found["learning rate/backbone"]:  # float32 in the file
        expected = 1e-2 * min(step / max(1, int(0.05 * steps)), 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
        assert rate == pytest.approx(expected, rel=1e-5)
    doubled = [2 * rate for _, rate in found["learning rate/backbone"]]
    assert [rate for _, rate in found["learning rate/projections"]] == pytest.approx(doubled)
    assert all(value > 0 for _, value in found["speed/tokens per second"])
    assert found["speed/minutes left"][-1][1] == 0


@pytest.mark.training
def test_a_run_that_goes_on_continues_its_curves(folder: Path, tmp_path: Path) -> None:
    def run(where: Path, *more: object) -> None:
        objective = new_objective()
        train(objective, [packed(objective)], CONFIG, validation(), *more, tensorboard=where)

    run(folder)
    whole = curves(folder)
    last = whole["loss/total"][-1][0]

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2 * EVERY:  # it has a point, and no state yet
            raise Interrupted

    again, state = tmp_path / "again", tmp_path / "training.pt"
    every_step = 0.0
    with pytest.raises(Interrupted):
        run(again, state, stop, every_step)
    kept = torch.load(state, weights_only=True)["step"]
    cut = curves(again)["loss/total"][-1][0]
    assert 0 < kept < cut == 2 * EVERY < last
    run(again, state)
    resumed = curves(again)
    for name in whole:
        if not name.startswith(("speed/", "validation/")):
            assert resumed[name] == whole[name], name
    with pytest.raises(
        ValueError, match=r"curves: was made with other input or settings .*learning rate 0.01, now 0.1"
    ):
        objective = new_objective()
        other = TrainingConfig(**{**vars(CONFIG), "learning_rate": 0.1})
        train(objective, [packed(objective)], other, tensorboard=folder)


def test_a_folder_of_anything_else_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    objective = new_objective()
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt"):
        train(objective, [packed(objective)], CONFIG, tensorboard=folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
