"""What can be wrong with a bundle. Every problem is found in one pass, before anything is served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genrec.bundle.checkpoint_shapes import checkpoint_problems
from genrec.bundle.manifest import CATALOG, CHECKPOINT, GOLDEN, MANIFEST, ONNX_GRAPH, TOKENIZER, BundleError, sha256_of

if TYPE_CHECKING:
    from genrec.bundle.bundle import Bundle


def file_problems(bundle: Bundle) -> Iterator[str]:
    """Files of the manifest that are missing or damaged: `file: problem` texts."""
    for name, expected in bundle.manifest.files.items():
        file = bundle.path / name
        if not file.is_file():
            yield f"{name}: is missing"
        elif file.stat().st_size != expected.bytes:
            yield f"{name}: has {file.stat().st_size} bytes, the manifest says {expected.bytes}"
        elif (found := sha256_of(file)) != expected.sha256:
            yield f"{name}: is damaged: sha256 {found[:12]}..., the manifest says {expected.sha256[:12]}..."


def content_problems(bundle: Bundle) -> Iterator[str]:
    """What is wrong with the contents of whole files: arrays, limits, tokenizer, the checkpoint's tensors."""
    manifest = bundle.manifest
    required = [ONNX_GRAPH, GOLDEN, f"{CHECKPOINT}/config.json", f"{CHECKPOINT}/model.safetensors"]
    if manifest.prompt.max_query:
        required.append(TOKENIZER)
    for name in [f for f in required if f not in manifest.files]:
        yield f"{name}: is not in the manifest"
    try:
        layout, catalog, index, _ = bundle.layout, bundle.catalog, bundle.index, bundle.graph_masks
    except BundleError as error:
        yield str(error)
        return
    if len(catalog) != manifest.catalog.items:
        yield f"{CATALOG}: has {len(catalog)} items, the manifest says {manifest.catalog.items}"
    if catalog.available.sum() != manifest.catalog.available:
        yield f"{CATALOG}: {catalog.available.sum()} available, the manifest says {manifest.catalog.available}"
    if catalog.kinds != manifest.catalog.attributes:
        yield f"{CATALOG}: has the attributes {catalog.kinds}, the manifest says {manifest.catalog.attributes}"
    yield from index.problems(catalog, bundle.space)
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
