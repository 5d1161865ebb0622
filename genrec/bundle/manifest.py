"""The manifest: which format and version a bundle has, what it serves, and the checksum of every file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from genrec.json_files import parse_json, read_json
from genrec.prompt import Limits
from genrec.votes import VotesConfig

FORMAT_VERSION = 4
# Older ones are read, too. The graph of format 3 takes no rules, that of format 2 takes the masks as a `PrefixTrie`.
PREFIXES_FORMAT = 2
MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
CATALOG, INDEX, MASKS, PREFIXES, CHECKPOINT, ONNX_GRAPH, ONNX_INT8, TENSORRT_LLM, QUANTIZER, VOTES = (
    "catalog",
    "index",
    "index/masks",
    "index/prefixes",
    "checkpoint",
    "engines/onnx/model.onnx",
    "engines/onnx/int8.onnx",
    "engines/tensorrt_llm",
    "quantizer",
    "votes",
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
    markers: tuple[int, ...] = ()

    @model_serializer(mode="wrap")
    def _readable_by_older_ones(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A genrec of before markers refuses the name, so only a bundle that has some says so."""
        return {name: value for name, value in write(self).items() if name != "markers" or value}


class CatalogSection(_Section):
    version: _Count
    items: _Count
    available: _Count
    attributes: dict[str, str] = {}  # kinds by name, see `genrec.catalog.columns`


class FileSection(_Section):
    bytes: int
    sha256: str


def _require_inside(name: str) -> str:
    """Raises ValueError for a file's name that leads out of the bundle, or that no file can have."""
    parts = name.split("/")
    plain = name.isprintable() and len(name) <= 1024
    if not plain or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError("is no path of a file in the bundle, such as catalog/sids.npy")
    return name


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
    votes: VotesConfig | None = None
    training: dict[str, Any] = {}
    files: dict[Annotated[str, AfterValidator(_require_inside)], FileSection]

    @model_serializer(mode="wrap")
    def _readable_without_votes(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A genrec of before votes refuses the name, so only a bundle that has some says so."""
        return {name: value for name, value in write(self).items() if name != "votes" or value is not None}

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        return (
            f"bundle {self.bundle_version}, catalogue {self.catalog.version} with {self.catalog.available} of "
            f"{self.catalog.items} items available, beam width {self.beam_width}{', with votes' * bool(self.votes)}"
        )

    @property
    def split_at(self) -> str | None:
        """The moment at which its data was split into training and test; None for leave-one-out, or if unknown."""
        split = self.training.get("split")
        at = split.get("at") if isinstance(split, dict) else None
        return None if at is None else str(at)

    @property
    def untrained(self) -> str:
        """That it was trained on nothing, and why, in words; empty if it was, or nothing is recorded."""
        curves = self.training.get("curves")
        losses = curves.get("losses") if isinstance(curves, dict) else None
        if not isinstance(losses, list) or any(loss is not None for loss in losses):
            return ""
        why = f"{len(losses)} epochs without a training step" if losses else "0 epochs"
        return f"trained on nothing ({why}): its weights are those of the checkpoint that it was built from, or random"


def read_manifest(path: Path, data: bytes | None = None) -> Manifest:
    """The manifest at `path`; data: what stands there, if it was read already.

    Raises BundleError for one that is missing, malformed or of another format version.
    """
    try:
        raw = read_json(path) if data is None else parse_json(data)
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; a bundle is the folder that `genrec build` writes") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: is not readable as JSON: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: has no format_version; it is not a bundle's manifest")
    if not PREFIXES_FORMAT <= version <= FORMAT_VERSION:
        newer = "upgrade genrec" if version > FORMAT_VERSION else "rebuild the bundle"
        readable = f"{PREFIXES_FORMAT} to {FORMAT_VERSION}"
        raise BundleError(f"{path}: format_version is {version}, this genrec reads {readable}; {newer}")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step)[:200] for step in first["loc"])[:400]
        raise BundleError(f"{path}: {where}: {first['msg'][:200]}, got {str(first.get('input'))[:80]}") from error


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
