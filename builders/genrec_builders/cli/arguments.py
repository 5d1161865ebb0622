"""Arguments that several commands take, and what several print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from genrec.catalog import KINDS
from genrec.catalog.kinds import check_kinds
from genrec.cli.arguments import usage

console = Console()
DataPath = Annotated[
    Path, typer.Argument(help="A dataset folder, with interactions and items in any form of docs/data.md.")
]
AttributeTypes = Annotated[
    Optional[list[str]],
    typer.Option(
        "--attribute-type",
        help="NAME=KIND of an attribute that rules filter by, where its column's own type is not meant, as in CSV: "
        f"{', '.join(KINDS)}. Repeatable.",
    ),
]


def _moment(given: str | None) -> str | None:
    """Whether it is one at all is told before millions of interactions are read."""
    from genrec_builders.data.times import require_moment

    if given is not None:
        try:
            require_moment(given)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    return given


SplitAt = Annotated[
    Optional[str],
    typer.Option(
        help="Train on what lies before this moment and hold out users' next items, instead of the last two of each "
        "user: 2024-05-01 or 2024-05-01T12:00 (UTC), or a number as the timestamps are written.",
        callback=_moment,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


def attribute_types(given: list[str] | None) -> dict[str, str]:
    """Kinds by name from the values of `AttributeTypes`."""
    found: dict[str, str] = {}
    for each in given or []:
        name, equals, kind = each.rpartition("=")
        with usage("--attribute-type", each):
            if not equals or name in found:
                raise ValueError(
                    f"{name!r} is given twice" if equals else "write it as NAME=KIND, such as price=number"
                )
            check_kinds({name: kind})
        found[name] = kind
    return found


def markers(given: str) -> tuple[str, str]:
    """The tokens that begin and end an item, from the value of `--item-markers`."""
    with usage("--item-markers", given):
        begin, comma, end = given.partition(",")
        if not (begin and comma and end) or "," in end or begin == end:
            raise ValueError("write two different tokens with a comma between, such as '<|sid_begin|>,<|sid_end|>'")
    return begin, end


def print_quality(quality: dict) -> None:
    table = Table(title=f"test split, {quality['users']} users")
    rankings = {name: values for name, values in quality.items() if isinstance(values, dict)}
    columns = list(dict.fromkeys(column for values in rankings.values() for column in values))
    for column in ["", *columns]:
        table.add_column(column.replace("_", " "), justify="right" if column else "left")  # wraps at the spaces
    for name, values in rankings.items():
        table.add_row(name.replace("_", " "), *(f"{values[c]:.4f}" if c in values else "" for c in columns))
    console.print(table)
