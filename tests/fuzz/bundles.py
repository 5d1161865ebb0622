"""Bundles that somebody has tampered with: the manifest, paths in it, links, arrays, archives, the checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genrec.arrays import load_archive, load_array
from genrec.bundle import CHECKPOINT, GOLDEN, MANIFEST, TOKENIZER, Bundle, BundleError
from genrec.bundle.checkpoint_shapes import checkpoint_problems
from genrec.bundle.manifest import read_manifest
from tests.fuzz.hostile import INTEGERS, OUTSIDE, TEXTS, mutated, tampered, text, written
from tests.fuzz.runner import Feed, Finding, Target
from tests.unit.bundle.conftest import write_hollow

DTYPES = ("<i4", "<i8", "<f4", "|b1", "|S8", "|O", "<U4", ">i4", "<c16", "|V8", "[('a', '<i4')]", "<M8[s]", "nonsense")


def npy(rng: random.Random, good: bytes) -> bytes:
    """An array's file with another header, or with other bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return tampered(rng, good)
    if kind == 1:
        return rng.choice(
            (b"", b"\x93NUMPY", b"PK\x03\x04" + good, b"\x80\x04N.", good[:10], b"PK\x05\x06" + bytes(18))
        )
    numbers = [number for number in INTEGERS if abs(number) < 10**31]
    shape = tuple(rng.choice((rng.choice(numbers), 3, 400, 400)) for _ in range(rng.randrange(3)))
    dtype = repr(rng.choice(DTYPES)) if rng.random() < 0.9 else rng.choice(DTYPES[-3:])
    header = f"{{'descr': {dtype}, 'fortran_order': {rng.random() < 0.2}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        header = rng.choice(
            ("", "{}", "(" * 9000, "{'shape': __import__('os')}", "-" * 9000 + "1", "[" * 90 + "]" * 90, header[:-9])
        )
    encoded = header.encode() + b"\n"
    rest = good[80:] if rng.random() < 0.5 else rng.randbytes(math.prod(abs(size) % 500 for size in shape) * 8)
    return b"\x93NUMPY\x01\x00" + (len(encoded) % 65536).to_bytes(2, "little") + encoded + rest


def npz(rng: random.Random, good: dict[str, bytes]) -> bytes:
    """An archive of arrays, with some of them tampered with, under other names, compressed, or more than they say."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        victims = rng.sample(list(good), min(len(good), rng.choice((0, 0, 1, 2))))
        for name, data in good.items():
            changed = npy(rng, data) if name in victims else data
            if rng.random() < 0.005:  # the bytes of a bomb
                changed = data[:80] + bytes(1 << 24)
            named = (
                rng.choice((text(rng).replace("\ud800", "")[:99], f"../{name}", name)) if rng.random() < 0.03 else name
            )
            kind = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
            for _ in range(rng.choice((1,) * 60 + (0, 2))):
                archive.writestr(zipfile.ZipInfo(f"{named}.npy"), changed, kind)
    data = file.getvalue()
    return tampered(rng, data) if rng.random() < 0.3 else data


def members(path: Path) -> dict[str, bytes]:
    """The arrays of an archive, as files."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


@contextmanager
def manifests(scratch: Path) -> Iterator[Feed]:
    bundle = write_hollow(scratch / "bundle")
    path = bundle.path / MANIFEST
    good = json.loads(path.read_text())

    def feed(rng: random.Random) -> None:
        found = good
        for _ in range(rng.randrange(1, 4)):
            found = mutated(rng, found)
        path.write_bytes(written(rng, found))
        read_manifest(path)
        layout = Bundle(bundle.path).layout
        assert layout.vocabulary_size

    yield feed


@contextmanager
def arrays(scratch: Path) -> Iterator[Feed]:
    path = scratch / "array.npy"
    file = io.BytesIO()
    np.save(file, np.arange(400, dtype=np.int32))

    def feed(rng: random.Random) -> None:
        path.write_bytes(npy(rng, file.getvalue()))
        dtype, shape = rng.choice((("S", (None,)), (np.int32, (None,)), (np.int64, (None, None)), (np.int32, (400,))))
        found = load_array(path, dtype, shape)
        if found.nbytes > path.stat().st_size:
            raise Finding(f"an array larger than its file: {found.shape} {found.dtype}")

    yield feed


@contextmanager
def archives(scratch: Path) -> Iterator[Feed]:
    path = scratch / "arrays.npz"
    np.savez(path, history=np.array([b"item-1"]), prompt=np.arange(9), scores=np.zeros(3, np.float32))
    good = members(path)

    def feed(rng: random.Random) -> None:
        path.write_bytes(npz(rng, good))
        found = load_archive(path, "golden request")
        if sum(array.nbytes for array in found.values()) > path.stat().st_size:
            raise Finding("an archive that becomes larger than it is")

    yield feed


@contextmanager
def checkpoints(scratch: Path) -> Iterator[Feed]:
    bundle = write_hollow(scratch / "bundle")
    config, weights = (bundle.path / CHECKPOINT / name for name in ("config.json", "model.safetensors"))
    said, data = json.loads(config.read_text()), weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, layout, levels = json.loads(data[8 : 8 + size]), bundle.layout, bundle.manifest.levels

    def feed(rng: random.Random) -> None:
        config.write_bytes(written(rng, mutated(rng, said)) if rng.random() < 0.5 else json.dumps(said).encode())
        if rng.random() < 0.5:
            head = written(rng, mutated(rng, header))
            length = len(head) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(head) + 9))
            weights.write_bytes(length.to_bytes(8, "little") + head + data[8 + size : 8 + size + 100_000])
        elif rng.random() < 0.2:
            weights.write_bytes(tampered(rng, data[: 8 + size]))
        else:
            weights.write_bytes(data)
        problems = list(checkpoint_problems(bundle.path / CHECKPOINT, levels, layout))
        if problems:
            raise BundleError("\n".join(problems)[:1900])

    yield feed


@contextmanager
def whole_bundles(scratch: Path) -> Iterator[Feed]:
    good = write_hollow(scratch / "good", queries=8).path
    names = sorted(path.relative_to(good).as_posix() for path in good.rglob("*") if path.is_file())
    contents = {name: (good / name).read_bytes() for name in names}
    folder = scratch / "bundle"
    shutil.copytree(good, folder)

    def feed(rng: random.Random) -> None:
        name = rng.choice([one for one in names if one != MANIFEST])
        path, kind = folder / name, rng.randrange(8)
        manifest = json.loads(contents[MANIFEST])
        files = manifest["files"]
        made: Path | None = None
        if kind == 0:
            link_to = rng.choice(
                (scratch / "outside" / "secret", good / name, Path("/etc/passwd"), Path("/dev/zero"), path)
            )
            path.unlink()
            path.symlink_to(link_to)
            if rng.random() < 0.5 and name != "attributes.parquet":  # which no server reads
                del files[name]
        elif kind == 1:
            there = rng.choice(
                (OUTSIDE, f"catalog/../../{OUTSIDE}", str(scratch / "outside" / "secret"), "/etc/passwd", *TEXTS[:14])
            )
            files[there] = files.get(name, {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()})
        elif kind == 2:
            made = folder / "catalog" / f"more-{rng.randrange(9)}.npy"
            made.write_bytes(b"x")
        else:
            good_bytes = contents[name]
            if name.endswith(".npy"):
                data = npy(rng, good_bytes)
            elif name == GOLDEN:
                data = npz(rng, members(good / name))
            elif name.endswith(".json"):
                data = written(rng, mutated(rng, json.loads(good_bytes)))
            else:
                data = tampered(rng, good_bytes)
            path.write_bytes(data)
            if rng.random() < 0.9 and name in files:
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        try:
            bundle = Bundle(folder)
            bundle.check()
            if kind in (0, 1, 2):
                raise Finding(f"taken, though it is not only what it says: {name} {kind}")
            _use(bundle)
        finally:
            if made is not None:
                made.unlink()
            if path.is_symlink():
                path.unlink()
            path.write_bytes(contents[name])

    yield feed


def _use(bundle: Bundle) -> Any:
    """What a server takes of it beside what the check reads."""
    if TOKENIZER in bundle.manifest.files and bundle.query_tokenizer is not None:
        bundle.query_tokenizer.encode_batch([b"gas stove"])
    return bundle.golden, bundle.catalog.rows_of(np.array([b"item-1", b"nobody"], object))


TARGETS = [
    Target("manifest", manifests, (BundleError,), share=6, says=r"manifest\.json: .|: .+ got "),
    Target(
        "array", arrays, (ValueError,), share=8, says=r"array\.npy: (cannot be read as an array: .|holds |has shape )"
    ),
    Target("archive", archives, (ValueError,), share=4, says=r"arrays\.npz: cannot be read as a golden request: ."),
    Target("checkpoint", checkpoints, (BundleError,), share=3, says=r"(config\.json|model\.safetensors): ."),
    Target("bundle", whole_bundles, (BundleError,), share=0.6, says=r"bundle"),
]
