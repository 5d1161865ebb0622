"""Prints what a project needs, one requirement a line, so that an image's layer of dependencies outlives its sources.

python requirements.py EXTRA... < pyproject.toml
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import tomllib


def requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """The dependencies of the table [project] and of its `extras`. Raises KeyError for an extra that it has not.

    Packages of the same repository are left out: an image installs them of their sources.
    """
    asked = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    yield from (line for line in chain.from_iterable(asked) if not line.startswith("genrec-"))


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.load(sys.stdin.buffer)["project"], sys.argv[1:])))
