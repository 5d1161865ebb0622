"""The bundle: everything that one deployment serves, as versioned and checksummed files."""

from genrec.bundle.bundle import Bundle
from genrec.bundle.folder import BUNDLE, new_bundle, seal_bundle
from genrec.bundle.manifest import (
    CATALOG,
    CHECKPOINT,
    FORMAT_VERSION,
    GOLDEN,
    INDEX,
    MANIFEST,
    MASKS,
    ONNX_GRAPH,
    ONNX_INT8,
    PREFIXES_FORMAT,
    QUANTIZER,
    SIGNATURE,
    TENSORRT_LLM,
    TOKENIZER,
    VOTES,
    BundleError,
    Manifest,
    sha256_of,
)
from genrec.bundle.signature import KeyProblem, sign_bundle

__all__ = [
    "BUNDLE",
    "CATALOG",
    "CHECKPOINT",
    "FORMAT_VERSION",
    "GOLDEN",
    "INDEX",
    "MANIFEST",
    "MASKS",
    "ONNX_GRAPH",
    "ONNX_INT8",
    "PREFIXES_FORMAT",
    "QUANTIZER",
    "SIGNATURE",
    "TENSORRT_LLM",
    "TOKENIZER",
    "VOTES",
    "Bundle",
    "BundleError",
    "KeyProblem",
    "Manifest",
    "new_bundle",
    "seal_bundle",
    "sha256_of",
    "sign_bundle",
]
