"""Finds HAProxy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from genrec.serving.triton.errors import TritonError

LEAST = (2, 6)  # older ones have no filters in Lua, or lose what they hold
HOW_TO_INSTALL = (
    "install it (Debian and Ubuntu: `apt-get install haproxy`), or leave the front out with --no-front, where only "
    "clients that you trust reach the server"
)


class FrontError(TritonError):
    """HAProxy is not there, is too old, lacks a part, or does not start."""


def find_haproxy() -> Path:
    """The `haproxy` on PATH or in a folder of system programs. Raises FrontError; the message says how to get one."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        raise FrontError(f"the front needs HAProxy {'.'.join(map(str, LEAST))} or newer: {HOW_TO_INSTALL}")
    try:
        said = subprocess.run([found, "-vv"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FrontError(f"{found} cannot be run: {error}") from None
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < LEAST:
        has = f"is version {version[1]}.{version[2]}" if version else "does not say its version"
        raise FrontError(f"{found} {has}; the front needs {'.'.join(map(str, LEAST))} or newer: {HOW_TO_INSTALL}")
    for part in ("+LUA", "prometheus-exporter"):
        if part not in said:
            raise FrontError(f"{found} was built without {part.strip('+')}: {HOW_TO_INSTALL}")
    return Path(found)
