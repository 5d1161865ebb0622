"""The bundle: a versioned, checksummed directory of everything that one deployment serves. Data only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genrec.catalog import Catalog
from genrec.checkpoint_shapes import checkpoint_problems
from genrec.item_index import ItemIndex
from genrec.prompt import PromptLayout
from genrec.query import QueryTokenizer
from genrec.semantic_id import SemanticIdSpace

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CATALOG, INDEX, CHECKPOINT, ONNX_GRAPH, TENSORRT_LLM, QUANTIZER = (
    "catalog",
    "index",
    "checkpoint",
    "engines/onnx/model.onnx",
    "engines/tensorrt_llm",
    "quantizer",
)
GOLDEN = "golden.npz"
TOKENIZER = "tokenizer.json"

_Count = Annotated[int, Field(ge=1)]
_CountOrNone = Annotated[int, Field(ge=0)]


class BundleError(ValueError):
    """A bundle that cannot be served; the message names the file and what is wrong with it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptSection(_Section):
    """`PromptLayout` without its space; see there."""

    prefix: tuple[int, ...]
    placeholders: tuple[int, ...]
    sid_tokens: tuple[tuple[tuple[int, int], ...], ...]
    max_history: _Count
    max_query: _CountOrNone = 0
    text_offset: _CountOrNone = 0
    text_tokens: _CountOrNone = 0
    drop_block: _Count = 1


class Limits(_Section):
    """What one request may ask for. Sizes count items, or bytes where the name says so."""

    top_k: _Count = 50
    default_top_k: _Count = 10
    exclude: _Count = 1000
    history: _Count = 10_000
    query_bytes: _Count = 4096


class CatalogSection(_Section):
    version: _Count
    items: _Count
    available: _Count


class FileSection(_Section):
    bytes: int
    sha256: str


class Manifest(_Section):
    """`manifest.json`."""

    format_version: int
    bundle_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    created: str
    levels: tuple[_Count, ...]
    prompt: PromptSection
    beam_width: Annotated[int, Field(ge=2)]
    limits: Limits
    catalog: CatalogSection
    training: dict[str, Any] = {}
    files: dict[str, FileSection]


class Bundle:
    """An opened bundle. Opening reads the manifest; arrays are mapped when they are first used."""

    def __init__(self, path: Path | str) -> None:
        """Open the bundle at `path`. Raises BundleError for a missing, malformed or newer manifest."""
        self.path = Path(path)
        self.manifest = _read_manifest(self.path / MANIFEST)

    @property
    def space(self) -> SemanticIdSpace:
        return SemanticIdSpace(self.manifest.levels)

    @cached_property
    def layout(self) -> PromptLayout:
        with _blame(self.path / MANIFEST):
            return PromptLayout(space=self.space, **self.manifest.prompt.model_dump())

    @cached_property
    def catalog(self) -> Catalog:
        with _blame(self.path / CATALOG):
            return Catalog.load(self.path / CATALOG, self.space)

    @cached_property
    def index(self) -> ItemIndex:
        with _blame(self.path / INDEX):
            return ItemIndex.load(self.path / INDEX, self.space)

    @cached_property
    def query_tokenizer(self) -> QueryTokenizer | None:
        """The tokenizer of text queries; None for a bundle that was not trained with them."""
        if not self.layout.max_query:
            return None
        with _blame(self.path / TOKENIZER):
            return QueryTokenizer(self.path / TOKENIZER, self.layout)

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        """One request and its answer at each step; see `genrec.golden`."""
        with _blame(self.path / GOLDEN), np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
            return dict(arrays)

    def check(self) -> None:
        """Read every file and verify it. Raises BundleError that lists every problem found."""
        problems = [*self._file_problems()]
        if not problems:
            problems += self._content_problems()
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise BundleError(f"bundle {self.path} cannot be served:\n{listed}\nRebuild it, or copy it again.")

    def _file_problems(self) -> Iterator[str]:
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                yield f"{name}: is missing"
            elif file.stat().st_size != expected.bytes:
                yield f"{name}: has {file.stat().st_size} bytes, the manifest says {expected.bytes}"
            elif (found := sha256_of(file)) != expected.sha256:
                yield f"{name}: is damaged: sha256 {found[:12]}..., the manifest says {expected.sha256[:12]}..."

    def _content_problems(self) -> Iterator[str]:
        manifest = self.manifest
        required = [ONNX_GRAPH, GOLDEN, f"{CHECKPOINT}/config.json", f"{CHECKPOINT}/model.safetensors"]
        if manifest.prompt.max_query:
            required.append(TOKENIZER)
        for name in [f for f in required if f not in manifest.files]:
            yield f"{name}: is not in the manifest"
        try:
            layout, catalog, index = self.layout, self.catalog, self.index
        except BundleError as error:
            yield str(error)
            return
        if len(catalog) != manifest.catalog.items:
            yield f"{CATALOG}: has {len(catalog)} items, the manifest says {manifest.catalog.items}"
        if catalog.available.sum() != manifest.catalog.available:
            yield f"{CATALOG}: {catalog.available.sum()} available, the manifest says {manifest.catalog.available}"
        yield from index.problems(catalog, self.space)
        least = self.space.beams(2 * manifest.limits.top_k)
        if manifest.beam_width < least:
            yield f"{MANIFEST}: beam_width {manifest.beam_width} is below twice limits.top_k, {least}"
        if manifest.limits.default_top_k > manifest.limits.top_k:
            yield f"{MANIFEST}: limits.default_top_k is above limits.top_k"
        try:
            _ = self.query_tokenizer
        except BundleError as error:
            yield str(error)
        for problem in checkpoint_problems(self.path / CHECKPOINT, manifest.levels, layout):
            yield f"{CHECKPOINT}/{problem}"


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


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(path: Path) -> Manifest:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; a bundle is the folder that `genrec build` writes") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: is not readable as JSON: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: has no format_version; it is not a bundle's manifest")
    if version != FORMAT_VERSION:
        newer = "upgrade genrec" if version > FORMAT_VERSION else "rebuild the bundle"
        raise BundleError(f"{path}: format_version is {version}, this genrec reads {FORMAT_VERSION}; {newer}")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}, got {str(first.get('input'))[:80]}") from error


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        text = str(error)
        raise BundleError(text if text.startswith(str(path)) else f"{path}: {text}") from error
