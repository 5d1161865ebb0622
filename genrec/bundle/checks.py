"""What can be wrong with a bundle. Every problem is found in one pass, before anything is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.bundle.checkpoint_shapes import checkpoint_problems
from genrec.bundle.manifest import (
    CATALOG,
    CHECKPOINT,
    GOLDEN,
    INDEX,
    MANIFEST,
    ONNX_GRAPH,
    QUANTIZER,
    TENSORRT_LLM,
    TOKENIZER,
    VOTES,
    BundleError,
    sha256_of,
)

if TYPE_CHECKING:
    from genrec.bundle.bundle import Bundle

_FOLDERS = tuple(f"{folder}/" for folder in (CATALOG, INDEX, CHECKPOINT, TENSORRT_LLM, QUANTIZER, VOTES))


def file_problems(bundle: Bundle) -> Iterator[str]:
    """Files of the manifest that are missing or damaged, and files that it does not name: `file: problem` texts."""
    files = bundle.manifest.files
    inside = bundle.path.resolve()
    for name, expected in files.items():
        file = bundle.path / name
        if not _leads_into(file, inside):
            yield f"{name}: is a link that leads out of the bundle; put the file itself there"
        elif not file.is_file():
            yield f"{name}: is missing"
        elif file.stat().st_size != expected.bytes:
            yield f"{name}: has {file.stat().st_size} bytes, the manifest says {expected.bytes}"
        elif (found := sha256_of(file)) != expected.sha256:
            yield f"{name}: is damaged: sha256 {found[:12]}..., the manifest says {expected.sha256[:12]}..."

    # Whatever lies in these folders may be read, whether the manifest's checksums cover it or not.
    for folder in sorted({name.partition("/")[0] for name in (*files, *_FOLDERS) if "/" in name}):
        for path in sorted((bundle.path / folder).rglob("*")):
            name = path.relative_to(bundle.path).as_posix()
            if name not in files and (path.is_symlink() or not path.is_dir()):
                yield f"{name}: is not in the manifest; take it away"


def _leads_into(file: Path, folder: Path) -> bool:
    """Whether a file's path, with all links followed, lies in `folder`; if it is not there, where it would."""
    try:
        return file.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # links in a circle
        return False


def content_problems(bundle: Bundle) -> Iterator[str]:
    """What is wrong with the contents of whole files: arrays, limits, tokenizer, the checkpoint's tensors."""
    manifest = bundle.manifest
    required = [ONNX_GRAPH, GOLDEN, f"{CHECKPOINT}/config.json", f"{CHECKPOINT}/model.safetensors"]
    if manifest.prompt.max_query:
        required.append(TOKENIZER)
    if unlisted := [name for name in required if name not in manifest.files]:
        yield from (f"{name}: is not in the manifest" for name in unlisted)
        return
    try:
        layout, catalog, index, votes = bundle.layout, bundle.catalog, bundle.index, bundle.votes
        _ = bundle.graph_masks
    except BundleError as error:
        yield str(error)
        return
    if len(catalog) != manifest.catalog.items:
        yield f"{CATALOG}: has {len(catalog)} items, the manifest says {manifest.catalog.items}"
    if catalog.available.sum() != manifest.catalog.available:
        yield f"{CATALOG}: {catalog.available.sum()} available, the manifest says {manifest.catalog.available}"
    if catalog.kinds != manifest.catalog.attributes:
        yield f"{CATALOG}: has the attributes {catalog.kinds}, the manifest says {manifest.catalog.attributes}"
    yield from (f"{CATALOG}/{problem}" for problem in catalog.problems(bundle.space))
    yield from index.problems(catalog, bundle.space)
    if votes is not None:
        yield from (f"{VOTES}/{problem}" for problem in votes.problems())
    least = bundle.space.beams(2 * manifest.limits.top_k)
    if manifest.beam_width < least:
        yield f"{MANIFEST}: beam_width {manifest.beam_width} is below twice limits.top_k, {least}"
    if manifest.limits.default_top_k > manifest.limits.top_k:
        yield f"{MANIFEST}: limits.default_top_k is above limits.top_k"
    try:
        _ = bundle.query_tokenizer
    except BundleError as error:
        yield str(error)
    for problem in checkpoint_problems(bundle.path / CHECKPOINT, manifest.levels, layout):
        yield f"{CHECKPOINT}/{problem}"
