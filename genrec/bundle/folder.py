"""Writes a bundle's folder: filled aside, sealed with a manifest, checked, put in place at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec.bundle.bundle import Bundle
from genrec.bundle.manifest import FORMAT_VERSION, MANIFEST, SIGNATURE, BundleError, FileSection, Manifest, sha256_of
from genrec.reporting.outputs import Output, replaced


def seal_bundle(folder: Path, **fields: Any) -> Manifest:
    """Write the manifest of a bundle whose files lie in `folder`.

    fields: `Manifest`'s, without `files`; `format_version` only for a copy that keeps its older one. A signature that
    lies there is removed: it is of another manifest.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    names = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (MANIFEST, SIGNATURE)
    )
    files = {n: FileSection(bytes=(folder / n).stat().st_size, sha256=sha256_of(folder / n)) for n in names}
    manifest = Manifest(**({"format_version": FORMAT_VERSION} | fields), files=files)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _names(folder: Path) -> Callable[[str], bool] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = {MANIFEST, SIGNATURE, *manifest["files"]} if isinstance(manifest["format_version"], int) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return None if names is None else names.__contains__


# A folder that holds what its manifest lists, in whatever version of the format, and nothing else.
BUNDLE = Output("a bundle", _names)


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes the bundle at `path` if the block and then `Bundle.check` of it end well.

    A bundle that is there is replaced then. Raises FileExistsError, at the end of the block, if anything else is there;
    `require_replaceable(path, BUNDLE)` says so before.
    """

    def check(folder: Path) -> None:
        try:
            Bundle(folder).check()
        except BundleError as error:
            found = str(error).replace(str(folder), str(path))
            raise BundleError(f"{path}: the new bundle is not put there: {found}") from error

    with replaced(path, BUNDLE, check) as folder:
        yield folder
