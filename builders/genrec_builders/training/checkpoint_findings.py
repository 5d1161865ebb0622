"""What there is to say about a checkpoint, one fact a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

USE, NEW, WARNING, DROP, REFUSE = "use", "new", "warning", "drop", "refuse"
# What a file of another kind can raise while it is taken apart.
UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class Finding(NamedTuple):
    """One fact. kind: USE, NEW for what starts random because it was asked for, WARNING, DROP or REFUSE.

    folder: of what is refused, if it is not the checkpoint's own.
    """

    kind: str
    text: str
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def require_usable(folder: Path, findings: Iterable[Finding]) -> None:
    """Raise ValueError with the first refusal among `findings`, if there is one."""
    refused = [finding for finding in findings if finding.kind == REFUSE]
    if refused:
        more = f" (and {len(refused) - 1} more: `genrec checkpoint check {folder}` lists them)" * (len(refused) > 1)
        raise ValueError(f"{refused[0].folder or folder}/{refused[0].text}{more}")


def count(names: Sequence[str]) -> str:
    """How many a message that names the first of `names` stands for."""
    return f" ({len(names)} in all)" * (len(names) > 1)


def examples(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
