"""SASRec (arXiv 1808.09781) with full cross-entropy, by RecTools, which the extra `rivals` installs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.sasrec import SASRecDataPreparator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from genrec_builders.training.examples import Windows
from genrec_builders.training.loop import Curves

_PADDING = 0  # RecTools' number of no item


@dataclass(frozen=True)
class SasrecConfig:
    """What RecTools calls n_factors, n_blocks, n_heads, dropout_rate, lr, batch_size and epochs.

    patience: epochs without a better validation metric before training stops, 0 for never. precision: "no" or "bf16",
    mixed.
    """

    hidden: int = 128
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.4
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 40
    patience: int = 0
    precision: str = "no"
    seed: int = 0


class AlikeInLength(Sampler[list[int]]):
    """Batches of rows of about one length, in random order. lengths: int [n]."""

    def __init__(self, lengths: np.ndarray, batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        return -(-self.lengths.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.lexsort((torch.rand(self.lengths.size).numpy(), self.lengths))
        for at in torch.randperm(len(self)).tolist():
            yield order[at * self.batch_size :][: self.batch_size].tolist()


class BatchesAlikeInLength(SASRecDataPreparator):
    """RecTools' rows, which are padded to the longest history, in batches from which most padding can be cut."""

    def get_dataloader_train(self) -> DataLoader:
        """As RecTools', in another order."""
        rows = super().get_dataloader_train().dataset
        lengths = np.array([len(row) for row in rows.sessions])
        return DataLoader(
            rows, batch_sampler=AlikeInLength(lengths, self.batch_size), collate_fn=self._collate_fn_train
        )


class TargetsOnly(TransformerLightningModule):
    """RecTools' softmax loss, without the padding and with logits of the targets alone: the same at a fraction of the
    time, as long as attention does not see padding."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean over the targets of the cross-entropy over all items that were trained on, and RecTools' padding."""
        longest = int((batch["x"] != _PADDING).sum(1).max())
        batch = {name: tensor[:, -longest:] for name, tensor in batch.items()}
        items = self.torch_model.item_model.get_all_embeddings()
        counted = batch["yw"] > 0
        states = self.torch_model.encode_sessions(batch, items)[counted]
        loss = F.cross_entropy(self.torch_model.similarity_module(states, items), batch["y"][counted])
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss


class Sasrec:
    """Scores of a catalogue. known: its rows by RecTools' numbers, from 1. items: of how many they are."""

    def __init__(self, module: TransformerLightningModule, known: np.ndarray, items: int, max_history: int) -> None:
        self.module, self.known, self.max_history = module, known, max_history
        self.numbers = np.full(items, _PADDING, np.int64)
        self.numbers[known] = 1 + np.arange(known.size)

    @torch.no_grad()
    def __call__(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, items], -inf for items that were not trained on; those of a history are left out of it."""
        rows = np.full((len(histories), self.max_history), _PADDING, np.int64)
        for row, history in zip(rows, histories, strict=True):
            numbers = self.numbers[history]
            numbers = numbers[numbers != _PADDING][-self.max_history :]
            row[row.size - numbers.size :] = numbers
        model = self.module.torch_model
        items = model.item_model.get_all_embeddings()
        states = model.encode_sessions({"x": torch.from_numpy(rows).to(items.device)}, items)[:, -1]
        scores = np.full((len(histories), self.numbers.size), -np.inf, np.float32)
        scores[:, self.known] = model.similarity_module(states, items)[:, 1:].cpu().numpy()
        return scores


def train_sasrec(
    windows: Windows,
    items: int,
    max_history: int,
    config: SasrecConfig,
    validate: Callable[[Sasrec], float],
    progress: Callable[[int, int, str], None] = lambda epoch, epochs, note: None,
) -> tuple[Sasrec, Curves]:
    """Train on windows of at most max_history + 1 of `items` catalogue rows.

    validate: a metric of the model as it stands, higher is better, called after each epoch; the best one's is returned.
    """
    losses: list[float] = []
    validation: list[float] = []
    best: dict[str, Tensor] = {}
    made: list[Sasrec] = []

    def end_epoch(trainer: Trainer, module: TransformerLightningModule) -> None:
        made[:] = [Sasrec(module, model.data_preparator.get_known_item_ids().astype(np.int64), items, max_history)]
        losses.append(float(trainer.callback_metrics[module.train_loss_name]))
        module.eval()
        validation.append(validate(made[0]))
        module.train()
        if validation[-1] == max(validation):
            best.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
        worse_for = len(validation) - 1 - int(np.argmax(validation))
        trainer.should_stop = bool(config.patience) and worse_for >= config.patience
        progress(len(losses), config.epochs, f"loss {losses[-1]:.3f}, validation {validation[-1]:.4f}")

    seed_everything(config.seed, verbose=False)
    model = SASRecModel(
        n_factors=config.hidden,
        n_blocks=config.blocks,
        n_heads=config.heads,
        dropout_rate=config.dropout,
        session_max_len=max_history,
        loss="softmax",
        lr=config.learning_rate,
        batch_size=config.batch_size,
        use_key_padding_mask=True,
        data_preparator_type=BatchesAlikeInLength,
        lightning_module_type=TargetsOnly,
        get_trainer_func=lambda: Trainer(
            max_epochs=config.epochs,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            callbacks=[LambdaCallback(on_train_epoch_end=end_epoch)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            devices=1,
        ),
    )
    began = time.monotonic()
    model.fit(_dataset(windows))
    sasrec = made[0]
    sasrec.module.load_state_dict(best)
    sasrec.module.eval()
    return sasrec, Curves(losses, validation, time.monotonic() - began)


def _dataset(windows: Windows) -> Dataset:
    """Every window as a user; weight 0 for items that are no targets of it."""
    lengths = windows.length
    owner = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: owner,
                Columns.Item: windows.items[windows.start[owner] + place],
                Columns.Weight: (place >= (lengths - windows.targets)[owner]).astype(np.float64),
                Columns.Datetime: pd.to_datetime(place, unit="s"),  # only their order counts
            }
        )
    )
