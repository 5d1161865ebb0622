"""Prints what a project needs, one requirement a line, so that an image's layer of dependencies outlives its sources.

python requirements.py EXTRA... < pyproject.toml
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tomllib


def requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """The dependencies of the table [project] and of its `extras`. Raises KeyError for an extra that it has not."""
    yield from project["dependencies"]
    for extra in extras:
        yield from project["optional-dependencies"][extra]


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.load(sys.stdin.buffer)["project"], sys.argv[1:])))
