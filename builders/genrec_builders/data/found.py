"""What was read from a dataset folder, and what in it is not used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

NAMED = 10


@dataclass
class Found:
    """A folder's files and columns, by what became of them.

    used: file name -> what was taken from it. ignored: files and folders that are not read. left_out: columns, users
    and items that are not used, in words.
    """

    folder: Path
    used: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def taken(self) -> str:
        return ", ".join(f"{name} ({what})" for name, what in self.used.items())

    def not_used(self) -> list[str]:
        files = [f"files {some(self.ignored)}"] if self.ignored else []
        return [*files, *self.left_out]


def some(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
