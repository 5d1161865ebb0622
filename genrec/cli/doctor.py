"""`genrec doctor`: what is wrong, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

from genrec.cli.arguments import StorageOptions, storage_options, usage

if TYPE_CHECKING:
    from genrec.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def doctor(
    bundle_path: Annotated[Optional[Path], typer.Argument(help="A bundle to look at, too.")] = None,
    server: Annotated[Optional[str], typer.Option(help="A running server to look at: host:port of its gRPC.")] = None,
    metrics: Annotated[
        Optional[str], typer.Option(help="The address of its metrics; http://HOST:8002/metrics if not given.")
    ] = None,
    store: Annotated[
        Optional[str], typer.Option(help="A live catalogue to look at: a folder, or a URL as s3://bucket/catalog.")
    ] = None,
    storage_option: StorageOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of lines.")] = False,
) -> None:
    """Look at this machine, a bundle, a running server and a live catalogue, and say what is wrong and what to do.

    The machine is looked at unless a server or a store is named without a bundle. Exit status 1 if something is wrong.
    """
    if metrics is not None and not metrics.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--metrics {metrics!r}: give an address as http://localhost:8002/metrics")
    if metrics is not None and server is None:
        raise typer.BadParameter("--metrics goes with --server, which is missing")
    if server is not None:
        from genrec_client.channel import split_urls

        with usage("--server", server):
            split_urls([server])
    options = storage_options(storage_option)
    if options and store is None:
        raise typer.BadParameter("--storage-option goes with --store, which is missing")
    found = [*_findings(bundle_path, server, metrics, store, options)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False, emoji=False)
        for one in found:
            verdict = one.verdict.value
            text = f"{one.subject} {one.name}: {one.found}"
            console.print(f"[{_COLOURS[verdict]}]{verdict:<8}[/]{escape(text)}")
            if one.todo:
                console.print(f"        -> {escape(one.todo)}")
    if wrong := [f"{one.subject} {one.name}: {' '.join(one.found.split())}" for one in found if one.verdict == "wrong"]:
        raise ValueError("; ".join(wrong))


def _findings(
    bundle_path: Path | None, server: str | None, metrics: str | None, store: str | None, options: dict[str, str]
) -> Iterator[Finding]:
    bundle = None
    if bundle_path is not None or (server is None and store is None):
        from genrec.doctor.machine import machine_findings

        yield from machine_findings()
    if bundle_path is not None:
        from genrec.doctor.bundle import bundle_findings

        found = [*bundle_findings(bundle_path)]
        yield from found
        if found[0].verdict != "wrong":  # it can be read
            from genrec.bundle import Bundle

            bundle = Bundle(bundle_path)
    if server is not None:
        from genrec.doctor.server import server_findings

        yield from server_findings(server, metrics, bundle)
    if store is not None:
        from genrec.doctor.store import store_findings

        yield from store_findings(store, options)
