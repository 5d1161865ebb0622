"""Memory and time of all that a build does with interactions before it trains, on a made-up log of any size.

python -m perf.data.size generate build/log-100m --interactions 100000000
python -m perf.data.size measure build/log-100m

`generate` writes some 18 bytes an interaction as Parquet and 32 as CSV. `measure` prints a line for each stage: its
seconds, and the largest resident set while it lasted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import typer
from rich.console import Console

from genrec.catalog import SemanticIdSpace
from genrec.cli.arguments import one_of
from genrec.prompt import PromptLayout
from genrec.reporting.machine import provenance
from genrec.reporting.progress import track
from genrec_builders.config import BuildConfig
from genrec_builders.data import popularity, read_dataset, split_interactions
from genrec_builders.fingerprint import build_fingerprint
from genrec_builders.training.examples import PackedWindows, make_windows

_CHUNK = 5_000_000
_LEVELS = (256, 256, 256)
_FIRST, _SECONDS = 1_600_000_000, 3 * 365 * 86_400  # three years from September 2020 on
_BATCHES = 100
app = typer.Typer(add_completion=False)
console = Console(stderr=True, soft_wrap=True)


@app.command()
def generate(
    out: Annotated[Path, typer.Argument(help="Folder of the dataset; must not be there.")],
    interactions: Annotated[int, typer.Option(min=1000)] = 100_000_000,
    users: Annotated[Optional[int], typer.Option(help="One for 20 interactions by default.")] = None,
    items: Annotated[int, typer.Option(min=100)] = 1_000_000,
    form: Annotated[str, typer.Option(help="parquet or csv.", callback=one_of(("parquet", "csv")))] = "parquet",
    seed: int = 0,
) -> None:
    """Write a log in the order of time: ids as text, a few users and items with most of the interactions."""
    users = users or max(1, interactions // 20)
    out.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (items, len(_LEVELS)), dtype=np.int32)
    sids = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), len(_LEVELS))
    pq.write_table(pa.table({"item_id": _ids("i", np.arange(items)), "sid": sids}), out / "items.parquet")
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    path = out / f"interactions.{form}"
    with (
        track("generate") as task,
        pq.ParquetWriter(path, schema) if form == "parquet" else pa_csv.CSVWriter(path, schema) as writer,
    ):
        for first in range(0, interactions, _CHUNK):
            count = min(_CHUNK, interactions - first)
            times = _FIRST + (first + np.sort(rng.random(count)) * count) / interactions * _SECONDS
            columns = [_ids("u", _skewed(rng, users, count, 2)), _ids("i", _skewed(rng, items, count, 4))]
            writer.write_table(pa.table([*columns, pa.array(times.astype(np.int64))], schema=schema))
            task(first + count, interactions, "")


@app.command()
def measure(
    data: Annotated[Path, typer.Argument(help="A dataset folder.")],
    split_at: Annotated[Optional[str], typer.Option(help="As of `genrec build`.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs that are planned.")] = 1,
    out: Annotated[Optional[Path], typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Read, split, and make training examples as `genrec build` does."""
    stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        _reset_peak()
        started = time.monotonic()
        yield
        stages[name] = {
            "seconds": time.monotonic() - started,
            "peak_rss_gib": _memory("VmHWM"),
            "then": _memory("VmRSS"),
        }
        figures = stages[name]
        console.print(f"{name:16}{figures['seconds']:8.1f} s {figures['peak_rss_gib']:7.2f} GiB at most")

    with stage("imports"):
        pass
    with stage("read"):
        dataset = read_dataset(data, console.print, track=track)
    config = BuildConfig(split_at=split_at)
    assert dataset.items.sids is not None and dataset.items.levels is not None
    with stage("fingerprint"):
        build_fingerprint(dataset, config)
    with stage("split"):
        split = split_interactions(dataset.interactions, split_at)
    with stage("popularity"):
        popularity(split, len(dataset.items))
    with stage("windows"):
        layout = PromptLayout.contiguous(SemanticIdSpace(dataset.items.levels), config.max_history)
        windows = make_windows(split.train.offsets, split.train.rows, config.max_history)
        packed = PackedWindows(windows, dataset.items.sids, layout)
    with stage(f"plan {epochs} epochs"):
        plans = [packed.plan(0, epoch, config.training.tokens_per_batch) for epoch in range(epochs)]
    with stage(f"{_BATCHES} batches"):
        for examples in plans[0][:_BATCHES]:
            packed.batch(examples, 0, 0)
    sizes: dict[str, Any] = {
        "interactions": len(dataset.interactions.rows),
        "users": len(dataset.interactions),
        "items": len(dataset.items),
        "windows": len(windows.length),
        "batches": len(plans[0]),
    }
    console.print(", ".join(f"{value:,} {name}" for name, value in sizes.items()))
    if out is not None:
        out.write_text(json.dumps({"settings": provenance(**sizes), "stages": stages}, indent=1) + "\n")


def _ids(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def _skewed(rng: np.random.Generator, many: int, count: int, power: float) -> np.ndarray:
    """int64 [count]: numbers below `many`; the larger `power`, the more often the low ones."""
    return (rng.random(count) ** power * many).astype(np.int64)


def _reset_peak() -> None:
    """The largest resident set counts from now on; from the start of the process where Linux does not allow that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> float:
    """GiB that Linux counts for this process: VmHWM, the most so far, or VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 2**20


if __name__ == "__main__":
    app()
