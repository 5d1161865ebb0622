"""`genrec demo-shop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec_builders.cli.arguments import Seed


def demo_shop(
    out: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    items: Annotated[int, typer.Option(min=100, help="Items of the catalogue.")] = 5000,
    users: Annotated[int, typer.Option(min=10, help="Users with a history.")] = 12000,
    seed: Seed = 0,
) -> None:
    """Make a synthetic shop: a catalogue with titles and embeddings, and shopping histories."""
    from genrec_builders.data import write_dataset
    from genrec_builders.data.demo_shop import make_demo_shop

    write_dataset(make_demo_shop(items, users, seed), out)
    typer.echo(f"{items} items and {users} users in {out}")
