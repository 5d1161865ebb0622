"""The training loop: any objective, any sources of batches, one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genrec_builders.config import TrainingConfig
from genrec_builders.training.examples import Source
from genrec_builders.training.objective import Objective, add_dropout

Progress = Callable[[int, int, float], None]  # (step, steps, loss)


@dataclass(frozen=True)
class Curves:
    """What a run measured, per epoch: mean training loss, and the validation metric if there was one.

    seconds: spent on training and validation, over all the processes that a run which was cut off took, but for what
    each had done since it last saved its state.
    """

    losses: list[float]
    validation: list[float]
    seconds: float = field(compare=False)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 0, whose weights were kept."""
        return int(np.argmax(self.validation)) if self.validation else len(self.losses) - 1


def train(
    objective: Objective,
    sources: Sequence[Source],
    config: TrainingConfig,
    validate: Callable[[], float] | None = None,
    state_path: Path | None = None,
    progress: Progress = lambda step, steps, loss: None,
    save_every_s: float = 30.0,
) -> Curves:
    """Train `objective.model` in place and leave it in evaluation mode, on the CPU.

    validate: a metric of the model as it stands, higher is better; called after each epoch. state_path: where the run
    is saved now and then; a run that finds its own state there goes on from it and ends as if it had not been
    interrupted. Started by `torchrun`, each process trains on its share of every epoch's batches.
    """
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    model = objective.model
    run = _Run(objective, sources, config, accelerator)
    if state_path is not None and state_path.exists():
        run.load(state_path)
    take_out = add_dropout(model, config.dropout, config.head_dropout)
    step, saved = 0, time.monotonic()
    try:
        for epoch, plan in enumerate(run.plans):
            if run.stopped:
                break
            for source, examples in plan:
                step += 1
                if step <= run.step:
                    continue
                loss = run.take_step(sources[source].batch(examples, config.seed, epoch), step)
                progress(step, run.steps, loss)
                if state_path is not None and time.monotonic() - saved > save_every_s:
                    run.save(state_path)
                    saved = time.monotonic()
            if len(run.losses) == epoch:
                run.end_epoch(validate)
    finally:
        take_out()
    if state_path is not None:
        run.save(state_path)
    run.keep_best()
    model.to("cpu").eval()
    return Curves(run.losses, run.validation, run.seconds)


class _Run:
    """The state of a run between steps."""

    def __init__(
        self, objective: Objective, sources: Sequence[Source], config: TrainingConfig, accelerator: Accelerator
    ) -> None:
        self.config, self.accelerator, self.model = config, accelerator, objective.model
        if config.freeze_backbone:
            _freeze_backbone(objective)
        self.plans = [self._plan(sources, epoch) for epoch in range(config.epochs)]
        self.steps = sum(map(len, self.plans))
        groups = parameter_groups(objective.model, config)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        warmup = max(1, int(config.warmup_share * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))),
        )
        self.prepared, self.optimizer = accelerator.prepare(objective, self.optimizer)
        self.step = 0
        self.began = time.monotonic()
        self.epoch_losses: list[float] = []
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.best: dict[str, Tensor] = {}

    def _plan(self, sources: Sequence[Source], epoch: int) -> list[tuple[int, np.ndarray]]:
        """Batches of an epoch as (source, examples), this process's share of them."""
        config, accelerator = self.config, self.accelerator
        batches = [
            (number, examples)
            for number, source in enumerate(sources)
            for examples in source.plan(config.seed, epoch, config.tokens_per_batch)
        ]
        order = np.random.default_rng([config.seed, epoch, 1]).permutation(len(batches))
        whole = len(batches) // accelerator.num_processes * accelerator.num_processes
        return [batches[i] for i in order[accelerator.process_index : whole : accelerator.num_processes]]

    @property
    def seconds(self) -> float:
        """Spent so far, before an interruption too."""
        return time.monotonic() - self.began

    @property
    def stopped(self) -> bool:
        """Whether the validation metric has not got better for `patience` epochs."""
        if not self.config.patience or not self.validation:
            return False
        return len(self.validation) - 1 - int(np.argmax(self.validation)) >= self.config.patience

    def take_step(self, batch: Any, step: int) -> float:
        # Dropout depends on the step alone, so that a resumed run draws what an uninterrupted one draws.
        torch.manual_seed(hash((self.config.seed, step, self.accelerator.process_index)))
        self.model.train()
        with self.accelerator.autocast():
            loss = self.prepared(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        self.step = step
        self.epoch_losses.append(loss.item())
        return self.epoch_losses[-1]

    def end_epoch(self, validate: Callable[[], float] | None) -> None:
        self.losses.append(float(np.mean(self.epoch_losses)) if self.epoch_losses else math.nan)
        self.epoch_losses = []
        if validate is None:
            return
        self.model.eval()
        self.validation.append(float(validate()))
        if self.validation[-1] == max(self.validation):
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def keep_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)

    @property
    def _fingerprint(self) -> dict[str, Any]:
        shapes = {name: list(parameter.shape) for name, parameter in self.model.named_parameters()}
        return {"config": asdict(self.config), "steps": self.steps, "shapes": shapes}

    def save(self, path: Path) -> None:
        """Write the state, atomically."""
        if not self.accelerator.is_main_process:
            return
        kept = ("step", "seconds", "epoch_losses", "losses", "validation", "best")
        state = {name: getattr(self, name) for name in kept}
        for name in ("model", "optimizer", "schedule"):
            state[name] = getattr(self, name).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"fingerprint": self._fingerprint}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Take up the state in `path` if it is this run's."""
        state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        if state.pop("fingerprint") != self._fingerprint:
            return
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state.pop(name))
        self.began -= state.pop("seconds", 0.0)
        for name, value in state.items():
            setattr(self, name, value)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict]:
    """AdamW's groups: the backbone and the three kinds of draft-head parameters, each with and without weight decay
    (norms, biases and embeddings have none)."""
    scales = {
        "draft_head.embeddings": config.code_embedding_scale,
        "draft_head.transition": config.transition_scale,
        "draft_head.projections": config.projection_scale,
        "draft_head.state_projections": config.projection_scale,
    }
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
            decay = 0.0 if parameter.dim() < 2 or "embed" in name else config.weight_decay
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def _freeze_backbone(objective: Objective) -> None:
    """Let gradients reach the draft head and, of the backbone, only the placeholders' embeddings."""
    for parameter in objective.model.model.parameters():
        parameter.requires_grad_(False)
    embeddings = objective.model.input_embeddings()
    trained = torch.zeros(len(embeddings), 1, device=embeddings.device)
    trained[list(objective.layout.placeholders)] = 1.0
    embeddings.requires_grad_(True).register_hook(lambda gradient: gradient * trained)
