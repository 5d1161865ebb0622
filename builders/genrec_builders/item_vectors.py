"""Learns `ItemVectors`: softmax over what users took next, over a sample of the catalogue where it is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.item_vectors import ItemVectors
from genrec.reporting.progress import Task
from genrec_builders.data import Sequences
from genrec_builders.training.loop import cosine

_LEAST_WEIGHT = np.float32(1e-12)  # of a place


@dataclass(frozen=True)
class VectorTraining:
    """How vectors are learned; docs/recipe.md has how these were chosen.

    size: e. candidates: items, drawn anew for each batch, among which the next one is told; more do not help.
    patience: epochs without a better validation metric before it ends. weight_decay: of AdamW, on all that is learned.
    batch_size: at least, and more if an epoch would take more than most_batches: each moves every item's vectors.
    """

    size: int = 128
    dropout: float = 0.6
    learning_rate: float = 5e-3
    weight_decay: float = 0.1
    batch_size: int = 256
    most_batches: int = 2000
    candidates: int = 2048
    epochs: int = 6
    patience: int = 2
    seed: int = 0


class _Vectors(nn.Module):
    """As `ItemVectors`; the row after the last, of `before`, stands for no item."""

    def __init__(self, items: int, places: int, config: VectorTraining) -> None:
        super().__init__()
        self.items, self.dropout, self.candidates = items, config.dropout, min(config.candidates, items)
        self.before = nn.Embedding(items + 1, config.size, padding_idx=items)
        self.after, self.bias = nn.Embedding(items, config.size), nn.Embedding(items, 1)
        with torch.no_grad():
            self.before.weight[:-1].normal_(std=0.1)
            self.after.weight.normal_(std=0.05)
            self.bias.weight.zero_()
        self.places = nn.Parameter(math.log(0.8) * torch.arange(places).clamp(max=60))

    def loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """histories: int64 [B, H], the last item first, `items` behind the first one; targets: int64 [B]."""
        weight = self.places.exp() * (histories < self.items)
        read = (self.before(histories) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).sqrt()
        read = F.dropout(read, self.dropout, self.training)
        drawn = torch.randperm(self.items)[: self.candidates].to(targets.device)
        others = read @ self.after(drawn).T + self.bias(drawn).T
        # Each stands for as many as were not drawn; the target stands for itself.
        others = others + math.log(self.items / self.candidates)
        others = others.masked_fill(drawn == targets[:, None], -math.inf)
        own = (read * self.after(targets)).sum(1, keepdim=True) + self.bias(targets)
        return F.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(targets))

    def vectors(self) -> ItemVectors:
        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().numpy().copy()

        return ItemVectors(
            before=array(self.before.weight[:-1]),
            after=array(self.after.weight),
            bias=array(self.bias.weight[:, 0]),
            places=np.maximum(array(self.places.exp()), _LEAST_WEIGHT),
        )


def learn_vectors(
    train: Sequences,
    items: int,
    max_history: int,
    validate: Callable[[ItemVectors], float],
    task: Task,
    config: VectorTraining = VectorTraining(),
) -> ItemVectors:
    """Learn from what users took after at most `max_history` items: the best epoch's vectors.

    train: the training part alone, of a catalogue of `items`. validate: a metric of held-out items, higher is better.
    Raises ValueError if no user has two items.
    """
    first = np.repeat(train.offsets[:-1], np.diff(train.offsets))
    targets = np.flatnonzero(np.arange(train.rows.size) > first)
    if not targets.size:
        raise ValueError(
            "no user has two items to train with, so nothing says what comes next: give longer histories, or leave "
            "item vectors out (`genrec votes --no-vectors`)"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = _Vectors(items, max_history, config).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    batches = min(-(-targets.size // config.batch_size), config.most_batches)
    steps = config.epochs * batches
    warmup = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(warmup, steps))
    reached: list[float] = []
    best = model.vectors()
    for epoch in range(config.epochs):
        for number, batch in enumerate(np.array_split(rng.permutation(targets), batches)):
            at = batch[:, None] - 1 - np.arange(max_history)
            histories = np.where(at >= first[batch, None], train.rows[np.maximum(at, 0)], items)
            tensors = (torch.from_numpy(each.astype(np.int64)) for each in (histories, train.rows[batch]))
            loss = model.loss(*(tensor.to(device) for tensor in tensors))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if not number % 50:
                task(epoch * batches + number, steps, f"loss {loss.item():.3f}")
        vectors = model.vectors()
        reached.append(validate(vectors))
        best_epoch = int(np.argmax(reached))
        if best_epoch == epoch:
            best = vectors
        if epoch - best_epoch >= config.patience:
            break
    return best
