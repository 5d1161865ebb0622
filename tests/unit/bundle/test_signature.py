"""Signed bundles: who has the public key takes no other bundle than what the holder of the private key signed."""

from __future__ import annotations

import base64
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import MANIFEST, SIGNATURE, Bundle, BundleError, KeyProblem, sign_bundle
from genrec.cli.main import main
from genrec.live.process import FollowerOptions, follow
from tests.unit.bundle.conftest import seal_again
from tests.unit.bundle.keys import make_keys


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path)


def test_a_signed_bundle_is_taken(hollow_copy: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    private, public = keys
    assert main(["sign", str(hollow_copy), "--key", str(private)]) == 0
    assert capsys.readouterr().out == f"signed: {hollow_copy / SIGNATURE}\n"
    assert main(["check", str(hollow_copy), "--public-key", str(public)]) == 0
    Bundle(hollow_copy).check()  # who has no key takes it, too
    assert not list(hollow_copy.glob("*.partial"))


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / SIGNATURE).unlink(), "is missing, and only signed bundles are taken"),
        (damage(SIGNATURE, lambda _: b"!"), "is no signature"),
        (damage(SIGNATURE, lambda _: b"A" * 9000), "is no signature: has more than 4096 bytes"),
        (damage(SIGNATURE, lambda _: b""), "is not the signature of manifest.json"),
        (damage(SIGNATURE, lambda _: base64.b64encode(bytes(64))), "is not the signature of manifest.json"),
        (damage(MANIFEST, lambda data: data + b" "), "is not the signature of manifest.json"),
        (seal_again, "is not the signature of manifest.json"),  # by somebody who writes the manifest too
        (damage("catalog/sids.npy", lambda data: data[:-1] + b"x"), "catalog/sids.npy: is damaged"),
        (lambda folder: (folder / "catalog/more.npy").write_bytes(b"x"), "catalog/more.npy: is not in the manifest"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(
    hollow_copy: Path, keys: tuple[Path, Path], change: Callable[[Path], Any], says: str
) -> None:
    signature = sign_bundle(hollow_copy, keys[0]).read_bytes()
    catalog = hollow_copy / "catalog" / "available.npy"
    assert catalog.exists()
    change(hollow_copy)
    if change is seal_again:  # it says the same, but for who sealed it, who keeps the old signature
        (hollow_copy / SIGNATURE).write_bytes(signature)
        (hollow_copy / MANIFEST).write_bytes((hollow_copy / MANIFEST).read_bytes().replace(b"hollow", b"hallow"))
    with pytest.raises(BundleError, match=says):
        Bundle(hollow_copy, keys[1]).check()


def test_another_key_does_not_do(hollow_copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign_bundle(hollow_copy, make_keys(tmp_path, "other")[0])
    with pytest.raises(BundleError, match=r"not the signature of manifest.json by the key of .*key.pub.pem"):
        Bundle(hollow_copy, keys[1])


@pytest.mark.parametrize("command", ["check", "serve"])
def test_every_command_refuses_what_is_not_signed(
    hollow_copy: Path, keys: tuple[Path, Path], command: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([command, str(hollow_copy), "--public-key", str(keys[1])]) == 1
    assert "only signed bundles are taken" in capsys.readouterr().err


def test_the_follower_refuses_what_is_not_signed(hollow_copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    options = FollowerOptions("nowhere", str(hollow_copy), str(tmp_path / "root"), 10, 1.0, public_key=str(keys[1]))
    with pytest.raises(BundleError, match="only signed bundles are taken"):
        follow(options, threading.Event())


def test_keys_that_cannot_be_used(hollow_copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    sign_bundle(hollow_copy, private)
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0IHNlY3JldA==\n-----END PRIVATE KEY-----\n")
    for attempt in (
        lambda: sign_bundle(hollow_copy, public),
        lambda: sign_bundle(hollow_copy, junk),
        lambda: Bundle(hollow_copy, private),
        lambda: Bundle(hollow_copy, junk),
        lambda: Bundle(hollow_copy, tmp_path / "nothing.pem"),
    ):
        with pytest.raises(KeyProblem) as caught:
            attempt()
        assert "c2VjcmV0" not in str(caught.value) and ".pem: " in str(caught.value)


def test_openssl_makes_the_keys_and_verifies_the_signature(hollow_copy: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    private, public, raw = (tmp_path / name for name in ("private.pem", "public.pem", "raw"))
    run = lambda words: subprocess.run(["openssl", *words.split()], check=True, capture_output=True)  # noqa: E731
    run(f"genpkey -algorithm ed25519 -out {private}")
    run(f"pkey -in {private} -pubout -out {public}")
    raw.write_bytes(base64.b64decode(sign_bundle(hollow_copy, private).read_bytes()))
    run(f"pkeyutl -verify -pubin -inkey {public} -rawin -in {hollow_copy / MANIFEST} -sigfile {raw}")
    Bundle(hollow_copy, public).check()


def test_a_signed_bundle_may_be_replaced(hollow_copy: Path, keys: tuple[Path, Path]) -> None:
    """The signature belongs to it: it is nothing of the user's that would be lost."""
    from genrec.bundle import BUNDLE
    from genrec.reporting.outputs import require_replaceable

    sign_bundle(hollow_copy, keys[0])
    require_replaceable(hollow_copy, BUNDLE)
