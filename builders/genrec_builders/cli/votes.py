"""`genrec votes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from genrec.cli.arguments import BundlePath
from genrec_builders.cli.arguments import DataPath, print_quality


def votes(
    bundle_path: BundlePath,
    data: DataPath,
    out: Annotated[Path, typer.Argument(help="Where the new bundle goes; another one that is there is replaced.")],
    validation_users: Annotated[
        int, typer.Option(min=1, help="Users whose validation items choose the votes' settings.")
    ] = 4000,
    evaluate_users: Annotated[
        Optional[int], typer.Option(min=1, help="Test users to evaluate; all by default.")
    ] = None,
    vectors: Annotated[
        bool,
        typer.Option("--vectors/--no-vectors", help="Learn item vectors, too; minutes, on a GPU if there is one."),
    ] = True,
) -> None:
    """Copy a bundle with votes: items that the buyers of a user's items bought come first, or come in.

    DATA is what the bundle was built of: the same items; votes are counted, and item vectors learned, in its training
    part.
    """
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset
    from genrec_builders.votes import add_votes

    dataset = read_dataset(data, track=track)
    manifest = add_votes(bundle_path, out, dataset, track, validation_users, evaluate_users, vectors)
    chosen, config = manifest.training["votes"], manifest.votes
    assert config is not None
    before, after = chosen["validation_ndcg"]["without"], chosen["validation_ndcg"]["with"]
    typer.echo(
        f"NDCG@10 of {chosen['validation_users']} validation users: {before:.4f} without votes, {after:.4f} with them "
        f"(weight {config.weight:g}, doubt {config.doubt:g}, affinity weight {config.affinity_weight:g}, "
        f"decay {config.decay:g}, shrinkage {chosen['shrinkage']:g})"
    )
    print_quality(manifest.training["quality"])
    typer.echo(f"bundle {manifest.bundle_version} in {out}")
