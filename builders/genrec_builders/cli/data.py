"""`genrec demo-shop` and `genrec data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec_builders.cli.arguments import AttributeTypes, DataPath, Seed, SplitAt, attribute_types


def demo_shop(
    out: Annotated[Path, typer.Argument(help="Where the dataset goes; one that this wrote is replaced.")],
    items: Annotated[int, typer.Option(min=100, help="Items of the catalogue.")] = 5000,
    users: Annotated[int, typer.Option(min=10, help="Users with a history.")] = 12000,
    seed: Seed = 0,
) -> None:
    """Make a synthetic shop: a catalogue with titles and embeddings, and shopping histories."""
    from genrec.reporting.outputs import require_replaceable
    from genrec_builders.data import write_dataset
    from genrec_builders.data.demo_shop import make_demo_shop
    from genrec_builders.data.table_form import DATASET
    from genrec_builders.fingerprint import shop_fingerprint

    require_replaceable(out, DATASET)
    write_dataset(make_demo_shop(items, users, seed), out, shop_fingerprint(items, users, seed))
    typer.echo(f"{items} items and {users} users in {out}")


def check(data: DataPath, attribute_type: AttributeTypes = None, split_at: SplitAt = None) -> None:
    """Print what a build would make of a dataset: the files it reads, what it drops and why it would refuse it."""
    from genrec.errors import DataError
    from genrec.reporting.progress import track
    from genrec_builders.data import split_interactions
    from genrec_builders.data.reading import load
    from genrec_builders.data.report import describe, problems

    dataset, found = load(data, attribute_types(attribute_type), track)
    split = split_interactions(dataset.interactions, split_at)
    for what, text in describe(dataset, found, split):
        typer.echo(f"{what:<14}{text}")
    if refused := problems(dataset, split):
        raise DataError(f"{data}: a build would refuse this: {'; '.join(refused)}")
    typer.echo("ok: a build would take this")
