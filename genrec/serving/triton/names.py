"""File names that Triton's Python backend can work with.

It writes the paths of its models and of its own folder into a shell's command line as they are, and starts Python in
the C locale, whatever the environment says. So they must be ASCII, without spaces and whatever else a shell reads.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path


def plain_scratch(prefix: str) -> Path:
    """A new folder for temporary files whose name Triton can work with."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=None if _is_plain(tempfile.gettempdir()) else "/tmp"))


def plain_name(path: Path, link: Path) -> Path:
    """`path`, absolute, or `link` where Triton cannot work with that name: it is then made a link to `path`."""
    path = path.absolute()
    if _is_plain(str(path)):
        return path
    link.symlink_to(path)
    return link


def _is_plain(path: str) -> bool:
    return shlex.quote(path) == path
