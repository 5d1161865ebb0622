"""`genrec check`."""

from __future__ import annotations

import typer

from genrec.cli.arguments import BundlePath


def check(bundle_path: BundlePath) -> None:
    """Verify every file of a bundle; lists what is wrong with it."""
    from genrec.bundle import Bundle

    bundle = Bundle(bundle_path)
    bundle.check()
    typer.echo(f"ok: {bundle.manifest.summary}")
    if bundle.manifest.untrained:
        typer.echo(f"warning: {bundle.manifest.untrained}")
