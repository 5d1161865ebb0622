"""The training loop: any objective, any sources of batches, one or several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genrec.reporting.kept import Fingerprint, digest, flat, require_same
from genrec_builders.config import TrainingConfig
from genrec_builders.training.examples import Source
from genrec_builders.training.objective import NezhaObjective, Objective, add_dropout, freeze_backbone
from genrec_builders.training.tracking import Tracker

Progress = Callable[[int, int, float], None]  # (step, steps, loss)
_OF_A_RUN = ("training steps", "tensors")  # of a fingerprint: known when the model and the batches are there


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
    made_of: Fingerprint | None = None,
    tensorboard: Path | None = None,
) -> Curves:
    """Train `objective.model` in place and leave it in evaluation mode, on the CPU.

    validate: a metric of the model as it stands, higher is better; called after each epoch. state_path: where the run
    is saved now and then; a run that finds its own state there goes on from it and ends as if it had not been
    interrupted. made_of: what decides the run beside `config`, kept with its state. tensorboard: a folder in which
    TensorBoard's curves grow while it runs; a run that goes on continues them. Started by `torchrun`, each process
    trains on its share of every epoch's batches.

    Raises ValueError for a state or curves of another run, before the first step if there would be none, and if the
    loss is no finite number any more.
    """
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    model = objective.model
    write_placeholders = _freeze(objective) if config.freeze_backbone else None
    run = _Run(objective, sources, config, accelerator, made_of or {})
    if state_path is not None and state_path.exists():
        run.load(state_path)
    tracker = None
    if tensorboard is not None and accelerator.is_main_process:
        tracker = Tracker(tensorboard, run.fingerprint, run.step, run.steps)
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
                batch = sources[source].batch(examples, config.seed, epoch)
                loss = run.take_step(batch, step)
                if tracker is not None:
                    tokens = batch.tokens * accelerator.num_processes
                    tracker.step(step, loss, objective.parts, run.learning_rates, tokens)
                progress(step, run.steps, loss)
                if state_path is not None and time.monotonic() - saved > save_every_s:
                    run.save(state_path)
                    saved = time.monotonic()
            if len(run.losses) == epoch:
                run.end_epoch(validate)
                if tracker is not None and run.validation:
                    tracker.validated(step, run.validation[-1])
    finally:
        take_out()
        if tracker is not None:
            tracker.close()
    if state_path is not None:
        run.save(state_path)
    run.keep_best()
    model.to("cpu").eval()
    if write_placeholders is not None:
        write_placeholders()
    return Curves(run.losses, run.validation, run.seconds)


class _Run:
    """The state of a run between steps."""

    def __init__(
        self,
        objective: Objective,
        sources: Sequence[Source],
        config: TrainingConfig,
        accelerator: Accelerator,
        made_of: Fingerprint,
    ) -> None:
        self.made_of = made_of
        self.config, self.accelerator, self.model = config, accelerator, objective.model
        self.plans = [self._plan(sources, epoch) for epoch in range(config.epochs)]
        self.steps = sum(map(len, self.plans))
        if config.epochs and not self.steps:
            batches = sum(len(source.plan(config.seed, 0, config.tokens_per_batch)) for source in sources)
            raise ValueError(
                f"training would take no step: an epoch has {batches} batches, of which each of "
                f"{accelerator.num_processes} processes takes one at a time; give more data, fewer tokens per batch or "
                "fewer processes"
            )
        groups = parameter_groups(objective.model, config)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        warmup = max(1, int(config.warmup_share * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, cosine(warmup, self.steps))
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

    @property
    def learning_rates(self) -> dict[str, float]:
        """Of the last step, by what they are of."""
        config, now = self.config, self.schedule.lr_lambdas[0](max(0, self.step - 1))
        scales = {
            "backbone": 0.0 if config.freeze_backbone else 1.0,
            "code embeddings": config.code_embedding_scale,
            "transitions": config.transition_scale,
            "projections": config.projection_scale,
        }
        return {name: now * scale * config.learning_rate for name, scale in scales.items()}

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
        # In fp16 a step may overflow; it is left out then, and the next ones are scaled down.
        if not math.isfinite(self.epoch_losses[-1]) and self.config.precision != "fp16":
            raise ValueError(
                f"the loss is {self.epoch_losses[-1]} at step {step} of {self.steps}: training has diverged; use a "
                f"learning rate below {self.config.learning_rate:g}"
            )
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
    def fingerprint(self) -> dict[str, str]:
        shapes = "".join(f"{name} {list(parameter.shape)} " for name, parameter in self.model.named_parameters())
        processes = self.accelerator.num_processes
        return {
            **self.made_of,
            **flat(asdict(self.config)),
            "training steps": f"{self.steps} on {processes} process{'es' if processes > 1 else ''}",
            "tensors": digest([shapes.encode()]),
        }

    def save(self, path: Path) -> None:
        """Write the state, atomically."""
        if not self.accelerator.is_main_process:
            return
        kept = ("step", "seconds", "epoch_losses", "losses", "validation", "best")
        state = {name: getattr(self, name) for name in kept}
        for name in ("model", "optimizer", "schedule"):
            state[name] = getattr(self, name).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"fingerprint": self.fingerprint}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Take up the state in `path`. Raises ValueError if it is another run's."""
        require_same_state(path, self.fingerprint)
        state = _read_state(path, map_location=self.accelerator.device)
        del state["fingerprint"]
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state.pop(name))
        self.began -= state.pop("seconds", 0.0)
        for name, value in state.items():
            setattr(self, name, value)


def cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step: rises for `warmup` steps, and falls to 0 after `steps`."""
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))))


def require_same_state(path: Path, made_of: Fingerprint, folder: Path | None = None) -> None:
    """Raises ValueError if the state in `path` is of a run of other data or settings; it need not be there.

    made_of: what `train` is told and `TrainingConfig` in words. What the state has more, only the run itself can judge.
    folder: to remove to start anew, by default `path` itself.
    """
    place = folder or path
    if not path.exists():
        return
    kept = _read_state(path, mmap=True, map_location="cpu").get("fingerprint")
    remedy = f"remove {place} to start anew, or name another folder to write to"
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        raise ValueError(f"{place}: an older genrec trained it and did not note on what; {remedy}")
    kept = {name: value for name, value in kept.items() if name in made_of or name not in _OF_A_RUN}
    require_same(place, kept, made_of, remedy)


def _read_state(path: Path, **options: Any) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True, **options)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as the state of a training, it may be cut; remove it to start anew"
        ) from error


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


def _freeze(objective: Objective) -> Callable[[], None]:
    if not isinstance(objective, NezhaObjective):
        raise ValueError("with a frozen backbone a draft head alone is trained, and this decoder has none")
    return freeze_backbone(objective)
