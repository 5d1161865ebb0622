"""Trains backbone and draft head jointly on packed rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from genrec.model.nezha import NezhaModel
from genrec.model.packing import packed_loss
from genrec.prompt import PromptLayout


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters of one run. tokens_per_batch counts packed tokens, padding included."""

    epochs: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    tokens_per_batch: int = 8192
    auxiliary_weight: float = 0.5
    gradient_clip: float = 1.0
    bfloat16: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Windows:
    """Slices of users' sequences to train on: rows [start, start + length) of `items`; the last `targets` count."""

    items: np.ndarray
    start: np.ndarray
    length: np.ndarray
    targets: np.ndarray


def make_windows(offsets: np.ndarray, rows: np.ndarray, max_history: int) -> Windows:
    """Windows of at most `max_history` + 1 items that make every item but a user's first a target exactly once.

    offsets: int64 [U + 1], rows: int32 [N], the users' training sequences. Long sequences give overlapping windows,
    so that a target has at least half of the longest history before it.
    """
    longest = max_history + 1
    stride = max(1, longest // 2)
    sizes = np.diff(offsets)
    count = np.where(sizes > longest, 1 + -(-(sizes - longest) // stride), 1)
    user = np.repeat(np.arange(sizes.size), count)
    step = np.arange(user.size) - np.repeat(np.cumsum(count) - count, count)  # 0 is the user's last window
    end = sizes[user] - step * stride
    start = np.maximum(0, end - longest)
    last = step == count[user] - 1
    targets = np.where(last, end - start - 1, stride)
    keep = end - start >= 2
    return Windows(rows, (offsets[user] + start)[keep], (end - start)[keep], np.minimum(targets, end - start - 1)[keep])


def train(
    model: NezhaModel,
    layout: PromptLayout,
    sids: np.ndarray,
    windows: Windows,
    config: TrainingConfig,
    state_path: Path | None = None,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    save_every_s: float = 30.0,
) -> list[float]:
    """Train `model` in place; returns the mean loss of each epoch that this call ran to its end.

    sids: int32 [n, L], of the catalogue's rows. state_path: where the run is saved now and then; a run that finds
    its own state there goes on from it and ends as if it had not been interrupted. progress(step, steps, loss).
    """
    plan = [_batches(windows, layout, config, epoch) for epoch in range(config.epochs)]
    steps = sum(map(len, plan))
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98))
    warmup = max(1, int(config.warmup_share * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))),
    )
    fingerprint = {"config": asdict(config), "steps": steps, "parameters": sum(p.numel() for p in model.parameters())}
    done = 0
    if state_path is not None and state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["fingerprint"] == fingerprint:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            done = state["step"]
    model.train()
    saved, step, losses = time.monotonic(), 0, []
    for batches in plan:
        epoch_losses = []
        for batch in batches:
            step += 1
            if step <= done:
                continue
            codes, counted = _gather(windows, batch, sids)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                loss = packed_loss(model, layout, codes, counted, config.auxiliary_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            schedule.step()
            epoch_losses.append(loss.item())
            progress(step, steps, epoch_losses[-1])
            if state_path is not None and time.monotonic() - saved > save_every_s:
                _save_state(state_path, fingerprint, step, model, optimizer, schedule)
                saved = time.monotonic()
        if epoch_losses:
            losses.append(float(np.mean(epoch_losses)))
    if state_path is not None and step > done:
        _save_state(state_path, fingerprint, step, model, optimizer, schedule)
    model.eval()
    return losses


def _batches(windows: Windows, layout: PromptLayout, config: TrainingConfig, epoch: int) -> list[np.ndarray]:
    """Window numbers of each batch of an epoch: alike in length, in random order."""
    rng = np.random.default_rng([config.seed, epoch])
    order = np.lexsort((rng.random(windows.length.size), windows.length))
    batches, at = [], order.size
    while at > 0:  # from the longest down, so that the first of a batch sets its width
        width = len(layout.prefix) + 2 * layout.space.depth * (int(windows.length[order[at - 1]]) - 1)
        size = max(1, config.tokens_per_batch // width)
        batches.append(order[max(0, at - size) : at])
        at -= size
    return [batches[i] for i in rng.permutation(len(batches))]


def _gather(windows: Windows, batch: np.ndarray, sids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 [R, N, L] of a batch's windows, padded at the end, and which targets count, bool [R, N - 1]."""
    length = windows.length[batch]
    at = np.arange(length.max())
    inside = np.minimum(at, length[:, None] - 1)
    codes = sids[windows.items[windows.start[batch][:, None] + inside]]
    counted = (at < length[:, None]) & (at >= (length - windows.targets[batch])[:, None])
    return codes, counted[:, 1:]


def _groups(model: NezhaModel, weight_decay: float) -> list[dict]:
    """Parameters with and without weight decay (norms, biases and embeddings have none)."""
    decayed: list[torch.Tensor] = []
    plain: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        (plain if parameter.dim() < 2 or "embed" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _save_state(
    path: Path,
    fingerprint: dict,
    step: int,
    model: NezhaModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"fingerprint": fingerprint, "step": step, "model": model.state_dict()}
    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
