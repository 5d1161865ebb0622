"""One ONNX graph or two: prefill, head and beam exported together, against prefill and head with beam apart.

python -m perf.speed.graphs build/shop-bundle
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from genrec.bundle import Bundle
from genrec.engines import open_engine
from perf.speed.parts import Parts


def main(
    bundle_path: Annotated[Path, typer.Argument(help="The bundle whose checkpoint is exported.")],
    threads: int = 0,
    rounds: int = 20,
) -> None:
    """Print the median milliseconds of both, measured in turn on the same prompts."""
    bundle = Bundle(bundle_path)
    parts, engine = Parts(bundle, threads), open_engine(bundle, threads=threads)
    rng = np.random.default_rng(0)
    prompts = [bundle.layout.encode(bundle.catalog.sids[rng.integers(0, len(bundle.catalog), 20)]) for _ in range(20)]
    calls = {
        "one graph": lambda prompt: engine.draft([prompt]),
        "two graphs": lambda prompt: parts.head(parts.prefill(prompt)),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            for prompt in prompts:
                began = time.perf_counter()
                call(prompt)
                if number:
                    times[name].append(1e3 * (time.perf_counter() - began))
    one, two = (float(np.median(spent)) for spent in times.values())
    print(f"one graph p50 {one:.2f} ms, two graphs p50 {two:.2f} ms, ratio two / one {two / one:.2f}")


if __name__ == "__main__":
    typer.run(main)
