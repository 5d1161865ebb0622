"""Mounts that only one command sees, for full disks and read-only folders. They need no root."""

from __future__ import annotations

import subprocess

from tests.needs import missing

_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def seen_by(command: list[str], *mounts: str) -> list[str]:
    """The command in a namespace of its own, behind shell commands that mount there. Skips where there are none."""
    try:
        subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        missing(f"user namespaces are closed here ({error}); unshare and mount have to be allowed")
    return [*_UNSHARE, "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *command]


def tmpfs(folder: object, size: str) -> str:
    """A disk of that size, in place of a folder."""
    return f"mount -t tmpfs -o size={size} none '{folder}'"


def read_only(folder: object) -> str:
    return f"mount --bind '{folder}' '{folder}' && mount -o remount,ro,bind '{folder}'"
