"""`genrec`: builds, checks, evaluates and serves bundles."""

from __future__ import annotations

from importlib.metadata import entry_points

from rich.console import Console
from rich.markup import escape

from genrec.bundle import BundleError
from genrec.cli.commands import build_app
from genrec.serving.triton import TritonError

GROUP = "genrec.commands"

# Modules of commands import nothing heavy (torch, pyarrow) until a command runs: serving goes without them.
app = build_app({entry.name: entry.load for entry in entry_points(group=GROUP)})


def main() -> None:
    """Run the command line; expected errors become one line and exit status 1."""
    try:
        app()
    except (BundleError, TritonError, ValueError, FileNotFoundError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error
