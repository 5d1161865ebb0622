"""Whether a bundle is whole, and fits this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from genrec.bundle import Bundle, BundleError
from genrec.doctor.finding import Finding, judged
from genrec.doctor.machine import SERVER_BYTES, mib
from genrec.reporting.machine import available_memory

_finding = partial(judged, "bundle")


def bundle_findings(path: Path) -> Iterator[Finding]:
    """What was found of the bundle at `path`."""
    try:
        bundle = Bundle(path)
        bundle.check()
    except BundleError as error:
        yield _finding("files", str(error), wrong="build it again, or copy it again")
        return
    manifest = bundle.manifest
    yield _finding("files", f"{manifest.summary}; every file is as it was written")
    yield _finding(
        "training",
        manifest.untrained or "trained",
        warning=manifest.untrained and "build it with data and epochs, unless its checkpoint was trained",
    )
    takes = sum(file.bytes for file in manifest.files.values()) + SERVER_BYTES
    free = available_memory()
    yield _finding(
        "memory",
        f"takes about {mib(takes)} with a server, {mib(free)} are available",
        wrong="" if takes <= free else "give the machine or the container more, or serve a smaller bundle",
    )
