"""`genrec check`."""

from __future__ import annotations

import typer

from genrec.cli.arguments import BundlePath


def check(bundle_path: BundlePath) -> None:
    """Verify every file of a bundle; lists what is wrong with it."""
    from genrec.bundle import Bundle

    bundle = Bundle(bundle_path)
    bundle.check()
    manifest = bundle.manifest
    typer.echo(
        f"ok: bundle {manifest.bundle_version}, catalogue {manifest.catalog.version} with "
        f"{manifest.catalog.available} of {manifest.catalog.items} items available, beam width {manifest.beam_width}"
    )
