"""Signatures of bundles: Ed25519 over the manifest, which has the checksum of every other file.

The keys are PEM files as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them. The signature
stands beside the manifest, in base64: 64 bytes that any Ed25519 library verifies against those of `manifest.json`.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from genrec.bundle.manifest import MANIFEST, SIGNATURE, BundleError

_MOST_BYTES = 4096  # of a key or a signature
_EXTRA = "signatures of bundles need the package `cryptography`: pip install 'genrec-triton[signing]'"


class KeyProblem(ValueError):
    """A key that cannot be used; the message names the file and never what it holds."""


def sign_bundle(bundle: Path, private_key: Path) -> Path:
    """Sign the manifest of `bundle`; gives the signature's file, which is replaced at once.

    private_key: PEM without a password. Raises KeyProblem, and OSError.
    """
    serialization, kinds = _library()
    key = _key(private_key, kinds.Ed25519PrivateKey, lambda data: serialization.load_pem_private_key(data, None))
    signature = base64.b64encode(key.sign((bundle / MANIFEST).read_bytes())) + b"\n"
    path = bundle / SIGNATURE
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(signature)
    os.replace(partial, path)
    return path


def verify_bundle(bundle: Path, public_key: Path) -> bytes:
    """The bytes of the manifest, if the holder of the key signed it.

    public_key: PEM. Raises BundleError for a bundle that is not signed, or not with this key, and KeyProblem.
    """
    serialization, kinds = _library()
    from cryptography.exceptions import InvalidSignature

    key = _key(public_key, kinds.Ed25519PublicKey, serialization.load_pem_public_key)
    path = bundle / SIGNATURE
    try:
        signature = base64.b64decode(_small(path).strip(), validate=True)
    except FileNotFoundError:
        raise BundleError(
            f"{path}: is missing, and only signed bundles are taken; sign it with `genrec sign`"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: is no signature: {error}; sign the bundle again with `genrec sign`") from None
    manifest = (bundle / MANIFEST).read_bytes()
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"{path}: is not the signature of {MANIFEST} by the key of {public_key}; take the bundle from who signed it"
        ) from None
    return manifest


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise KeyProblem(_EXTRA) from error
    return serialization, ed25519


def _key(path: Path, kind: type, load: Any) -> Any:
    try:
        key = load(_small(path))
    except OSError as error:
        raise KeyProblem(f"{path}: the key cannot be read: {error.strerror}") from None
    except Exception:  # of many kinds; the library's words may hold parts of the file
        key = None
    if not isinstance(key, kind):
        wanted = "private" if "Private" in kind.__name__ else "public"
        raise KeyProblem(f"{path}: is no {wanted} Ed25519 key in PEM without a password; see `genrec sign --help`")
    return key


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"has more than {_MOST_BYTES} bytes")
    return data
