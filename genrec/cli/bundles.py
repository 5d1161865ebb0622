"""`genrec check` and `genrec sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrec.cli.arguments import BundlePath, PublicKey


def sign(
    bundle_path: BundlePath,
    key: Annotated[Path, typer.Option(help="PEM of an Ed25519 private key: `openssl genpkey -algorithm ed25519`.")],
) -> None:
    """Check a bundle and sign its manifest, for `genrec check --public-key` and `genrec serve --public-key`."""
    from genrec.bundle import Bundle, sign_bundle

    Bundle(bundle_path).check()
    typer.echo(f"signed: {sign_bundle(bundle_path, key)}")


def check(bundle_path: BundlePath, public_key: PublicKey = None) -> None:
    """Verify every file of a bundle; lists what is wrong with it."""
    from genrec.bundle import Bundle

    bundle = Bundle(bundle_path, public_key)
    bundle.check()
    typer.echo(f"ok: {bundle.manifest.summary}")
    if bundle.manifest.untrained:
        typer.echo(f"warning: {bundle.manifest.untrained}")
