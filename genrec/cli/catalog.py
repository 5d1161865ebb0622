"""`genrec catalog`: commands of the live catalogue."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genrec.cli.arguments import BundlePath, StorageOptions, storage_options, usage

if TYPE_CHECKING:
    from genrec.live.store import CatalogStore

Location = Annotated[str, typer.Argument(help="The live catalogue: a folder, or a URL such as s3://bucket/catalog.")]
BundleOption = Annotated[
    Optional[Path], typer.Option(help="The bundle whose quantiser gives a sid to items that have only an embedding.")
]
Message = Annotated[str, typer.Option(help="A line for the catalogue's log.")]


def init(bundle_path: BundlePath, location: Location, storage_option: StorageOptions = None) -> None:
    """Make a live catalogue of the items of a bundle; refuses a location that holds anything."""
    options = storage_options(storage_option)
    _store_class()
    from genrec.bundle import Bundle
    from genrec.live.init import init_catalog

    bundle = Bundle(bundle_path)
    init_catalog(bundle, location, options)
    typer.echo(f"version 0: {len(bundle.catalog)} items in {location}")


def apply(
    location: Location,
    add: Annotated[
        Optional[Path],
        typer.Option(
            help="Parquet, CSV or JSON Lines of items, new or known: item_id, sid or embedding, popularity, available, "
            "attributes, or a column for each attribute. What is not said stays as it is."
        ),
    ] = None,
    remove: Annotated[Optional[Path], typer.Option(help="Ids to forget, one a line.")] = None,
    available: Annotated[Optional[Path], typer.Option(help="Ids that may be recommended again, one a line.")] = None,
    unavailable: Annotated[
        Optional[Path], typer.Option(help="Ids that stay known and are not recommended, one a line.")
    ] = None,
    bundle: BundleOption = None,
    change_sids: Annotated[
        bool, typer.Option("--change-sids", help="Let items of --add change their semantic ID.")
    ] = False,
    message: Message = "",
    storage_option: StorageOptions = None,
) -> None:
    """Change a live catalogue, by one version. What is wrong is refused before anything is written."""
    given = {"add": add, "remove": remove, "available": available, "unavailable": unavailable}
    files = {role: path for role, path in given.items() if path is not None}
    if not files:
        raise typer.BadParameter(f"nothing to apply: give {', '.join('--' + role for role in given)}, or some of them")
    store = _open(location, storage_option, bundle)
    from genrec.live.apply import apply_files

    done = apply_files(store, files, change_sids=change_sids, message=message)
    typer.echo(
        f"version {done.version}: {done.added} added, {done.changed} changed, {done.removed} removed, "
        f"{done.available} available, {done.unavailable} unavailable"
    )


def log(
    location: Location,
    limit: Annotated[int, typer.Option(min=1, help="Versions to list, the newest first.")] = 20,
    storage_option: StorageOptions = None,
) -> None:
    """List the versions of a live catalogue."""
    store = _open(location, storage_option)
    table = Table()
    for name in ("version", "time", "operation", "rows", "message"):
        table.add_column(name, no_wrap=name != "message")
    for entry in store.log(limit):
        time = datetime.fromtimestamp(entry.time, timezone.utc).isoformat(" ", "seconds") if entry.time else ""
        rows = "" if entry.rows is None else str(entry.rows)
        table.add_row(str(entry.version), time, escape(entry.operation), rows, escape(entry.message))
    Console().print(table)


def rollback(
    location: Location,
    version: Annotated[int, typer.Argument(min=0, help="The version whose content the new one gets.")],
    message: Message = "",
    storage_option: StorageOptions = None,
) -> None:
    """Write a new version of a live catalogue that is as an old one was."""
    typer.echo(f"version {_open(location, storage_option).rollback(version, message)}: as version {version}")


def compact(
    location: Location,
    keep_versions: Annotated[int, typer.Option(min=1, help="Newest versions that can still be read.")] = 100,
    bundle: BundleOption = None,
    storage_option: StorageOptions = None,
) -> None:
    """Write the whole content as a new base of a live catalogue, and remove what old versions alone need."""
    newest = _open(location, storage_option, bundle).compact(keep_versions)
    typer.echo(f"version {newest}: compacted; the newest {keep_versions} versions are kept")


def inspect(
    location: Location,
    bundle: Annotated[
        Optional[Path], typer.Option(help="The bundle that it was made of: for drift, and for the longest answer.")
    ] = None,
    version: Annotated[Optional[int], typer.Option(min=0, help="A version to look at, in place of the newest.")] = None,
    where: Annotated[
        Optional[str], typer.Option(help='A condition of rules as JSON, such as {"attribute": "price", "<": 50}.')
    ] = None,
    plot: Annotated[Optional[Path], typer.Option(help="Draw it, too: an .svg file; needs matplotlib.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    storage_option: StorageOptions = None,
) -> None:
    """Show what is in a live catalogue, whether all of it can be recommended, and whether it is time to train again."""
    options = storage_options(storage_option)
    store_class = _store_class()
    from genrec.bundle import Bundle
    from genrec.cli.inspection import print_inspection
    from genrec.live.inspection import TOP_K, inspect_catalog
    from genrec.live.rule_reach import BEAM_WIDTH
    from genrec.rules import bind, parse

    asked = None
    if where is not None:
        with usage():
            asked = parse(f'{{"where": {where}}}', f"--where {where!r}")
    trained = None if bundle is None else Bundle(bundle)
    if plot is not None:
        if plot.suffix != ".svg" or not plot.parent.is_dir():
            raise ValueError(f"--plot {plot}: name a file that ends in .svg, in a folder that is there")
        from genrec.live.plots import inspection_figure
        from genrec.reporting.page import save_figure
    store = store_class.open(location, None if trained is None else trained.quantizer, options)
    if trained is not None and trained.space != store.space:
        raise ValueError(
            f"--bundle {bundle}: has levels {list(trained.space.levels)}, {location} has {list(store.space.levels)}; "
            "name the bundle that it was made of"
        )
    rule = None if asked is None else bind(asked, store.kinds, f"--where {where!r}").filter
    newest = store.latest()
    catalog, top_k = (None, TOP_K) if trained is None else (trained.catalog, trained.manifest.limits.top_k)
    width = BEAM_WIDTH if trained is None else trained.space.beams(trained.manifest.beam_width)
    found = inspect_catalog(store, newest if version is None else version, catalog, top_k, rule, width)
    if as_json:
        typer.echo(json.dumps(found.figures(), indent=2))
    else:
        print_inspection(found)
    if plot is not None:
        save_figure(inspection_figure(found), plot.parent, plot.stem)


def _open(location: str, storage_option: list[str] | None, bundle: Path | None = None) -> CatalogStore:
    options = storage_options(storage_option)
    store = _store_class()
    quantizer = None
    if bundle is not None:
        from genrec.bundle import Bundle

        quantizer = Bundle(bundle).quantizer
        if quantizer is None:
            raise ValueError(f"--bundle {bundle}: has no quantiser; give sids, and leave --bundle out")
    return store.open(location, quantizer, options)


def _store_class() -> type[CatalogStore]:
    try:
        import deltalake  # noqa: F401
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed, which the live catalogue needs: pip install 'genrec-triton[catalog]'"
        ) from error
    from genrec.live.store import CatalogStore

    return CatalogStore
