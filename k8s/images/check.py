"""Fails the build of an image in which something that serving needs is missing.

python check.py [MODULE ...] [--found PACKAGE ...]

MODULE: of this image's engines, to import. PACKAGE: what cannot be imported without a GPU's driver, so that it is only
looked for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from genrec.serving.repository import MODEL, source_repository
from genrec.serving.triton import STUB_NAME, find_triton, prepare_backends

MODULES = (
    "genrec.engines.onnx",
    "genrec.live.follower",
    "genrec.live.store",
    "genrec.prompt.preprocessor",
    "genrec.verifier",
    "genrec_client.cli",
    "tokenizers",
)
# They come with the driver of the machine that the image runs on.
OF_THE_DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}


def missing_libraries() -> set[str]:
    """Shared libraries that the server and its Python backend do not find. Raises TritonNotFoundError without them."""
    triton = find_triton()
    missing: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        stub = prepare_backends(triton, scratch) / "python" / STUB_NAME
        folders = (*triton.library_dirs, stub.parent, os.environ.get("LD_LIBRARY_PATH", ""))
        environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, map(str, folders)))}
        for binary in (triton.binary, stub):
            linked = subprocess.run(["ldd", binary], env=environment, capture_output=True, text=True, check=True)
            missing.update(re.findall(r"(\S+) => not found", linked.stdout))
    return missing - OF_THE_DRIVER


def main(words: Sequence[str] | None = None) -> None:
    """Check modules, the command, the server and the model repository."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--found", nargs="+", default=[])
    asked = parser.parse_args(words)
    for module in (*MODULES, *asked.modules):
        importlib.import_module(module)
    if lacking := [package for package in asked.found if importlib.util.find_spec(package) is None]:
        sys.exit(f"{sys.executable} finds no {', '.join(lacking)}")
    subprocess.run([Path(sys.executable).with_name("genrec"), "--help"], capture_output=True, check=True)
    if missing := missing_libraries():
        sys.exit(f"missing libraries: {', '.join(sorted(missing))}")
    if not (source_repository() / MODEL / "config.pbtxt").is_file():
        sys.exit(f"no model repository in {source_repository()}")


if __name__ == "__main__":
    main()
