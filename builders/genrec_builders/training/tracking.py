"""What a training does while it runs, as curves for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from genrec.reporting.kept import Fingerprint, require_same
from genrec.reporting.outputs import Output, require_output

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVERY = 10  # steps between two points of a curve
_RUN = "run.json"
_CURVES = Output.of_patterns("the curves of a training", [_RUN], ["events.out.tfevents.*"])


class Tracker:
    """Curves in a folder, point by point. Values are those of one step; TensorBoard smooths them."""

    def __init__(self, folder: Path, made_of: Fingerprint, done: int, steps: int) -> None:
        """made_of: what decides the run. done: steps that it has taken before; points behind them, of a run that was
        cut off after it saved its state, are dropped by TensorBoard. Raises as `require_tracking` does, and ValueError
        for a folder with the curves of another run.
        """
        writer = require_tracking(folder)
        note = folder / _RUN
        if note.exists():
            kept = json.loads(note.read_text())
            require_same(folder, kept, made_of, "name another folder for these curves, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(dict(made_of), indent=1) + "\n")
        self._writer = writer(str(folder), purge_step=done + 1, flush_secs=10)
        self._steps = steps
        self._began, self._from = time.monotonic(), done
        self._tokens = 0

    def step(
        self, step: int, loss: float, parts: Mapping[str, Tensor], rates: Mapping[str, float], tokens: int
    ) -> None:
        """One step, from 1. parts: losses by level, [L] each, by name. rates: learning rates. tokens: of the batch."""
        self._tokens += tokens
        if step % EVERY and step != self._steps:
            return
        values = {"loss/total": loss} | {f"learning rate/{name}": rate for name, rate in rates.items()}
        for name, losses in parts.items():
            values |= {f"{name}/level {level}": value for level, value in enumerate(losses.tolist(), 1)}
        spent = time.monotonic() - self._began
        values["speed/tokens per second"] = self._tokens / spent
        values["speed/minutes left"] = spent / (step - self._from) * (self._steps - step) / 60
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def validated(self, step: int, metric: float) -> None:
        """The validation metric of an epoch that ended with `step`."""
        self._writer.add_scalar("validation/ndcg@10", metric, step)

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


def require_tracking(folder: Path, others: Iterable[Path | None] = ()) -> type[SummaryWriter]:
    """What writes curves. Raises ValueError if TensorBoard is not installed, and as `require_output` does for a folder
    of anything else, or in one of `others`, which the build reads or writes.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"{folder}: curves need TensorBoard, which is not installed: pip install 'genrec-builders[tracking]'"
        ) from error
    require_output(folder, _CURVES, others)
    return SummaryWriter
