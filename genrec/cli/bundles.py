"""`genrec check` and `genrec sign`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    manifest = bundle.manifest
    typer.echo(
        f"ok: bundle {manifest.bundle_version}, catalogue {manifest.catalog.version} with "
        f"{manifest.catalog.available} of {manifest.catalog.items} items available, beam width {manifest.beam_width}"
    )
    if why := _untrained(manifest.training):
        typer.echo(
            f"warning: trained on nothing ({why}): its weights are those of the checkpoint that it was built from, or "
            "random"
        )


def _untrained(training: Mapping[str, Any]) -> str:
    """By a manifest's record of its training, why there was none; empty if there was, or nothing is recorded."""
    curves = training.get("curves")
    losses = curves.get("losses") if isinstance(curves, dict) else None
    if not isinstance(losses, list) or any(loss is not None for loss in losses):
        return ""
    return f"{len(losses)} epochs without a training step" if losses else "0 epochs"
