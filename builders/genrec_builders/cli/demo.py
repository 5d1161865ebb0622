"""`genrec demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from genrec_builders.cli.arguments import console


def demo(
    data: Annotated[Optional[Path], typer.Option(help="Dataset folder; the demo shop by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where data and bundle are kept between runs.")] = Path("build"),
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Train for so many epochs instead.")] = None,
) -> None:
    """From data to ten recommendations through a real server: build what is missing, serve, ask."""
    from genrec_builders.demo import run_demo

    run_demo(data, work, console, epochs)
