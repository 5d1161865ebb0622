"""Processes of this machine, as tests look for them."""

from __future__ import annotations

from pathlib import Path


def processes() -> dict[int, tuple[int, str]]:
    """All processes: id -> (parent's id, command line)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        found[int(folder.name)] = parent, line
    return found


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes below `pid`, by id."""
    everyone = processes()
    below: dict[int, str] = {}
    fresh = {pid}
    while fresh:
        fresh = {child for child, (parent, _) in everyone.items() if parent in fresh}
        below |= {child: everyone[child][1] for child in fresh}
    return below
