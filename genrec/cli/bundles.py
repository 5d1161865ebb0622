"""`genrec check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
