"""Writes a bundle's folder: filled aside, sealed with a manifest, put in place at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec.bundle.manifest import FORMAT_VERSION, MANIFEST, FileSection, Manifest, sha256_of


def seal_bundle(folder: Path, **fields: Any) -> Manifest:
    """Write the manifest of a bundle whose files lie in `folder`. fields: `Manifest`'s, without `files`."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {n: FileSection(bytes=(folder / n).stat().st_size, sha256=sha256_of(folder / n)) for n in names}
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes the bundle at `path` only if the block ends well; replaces one that is there."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if path.exists():
            shutil.rmtree(path)
        staging.rename(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
