"""Arguments that several commands take, and what several print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

console = Console()
DataPath = Annotated[Path, typer.Argument(help="A dataset folder: inter.json + index.json, or interactions and items.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


def print_quality(quality: dict) -> None:
    table = Table(title=f"test split, {quality['users']} users")
    rankings = {name: values for name, values in quality.items() if isinstance(values, dict)}
    columns = list(dict.fromkeys(column for values in rankings.values() for column in values))
    for column in ["", *columns]:
        table.add_column(column.replace("_", " "), justify="right" if column else "left")  # wraps at the spaces
    for name, values in rankings.items():
        table.add_row(name.replace("_", " "), *(f"{values[c]:.4f}" if c in values else "" for c in columns))
    console.print(table)
