"""Hook of MkDocs: links that leave docs/ lead to the repository, where the same Markdown is read too."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[^)\s]+")

log = logging.getLogger("mkdocs.hooks.links")  # under --strict, a warning ends the build


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """`](../client/README.md)` becomes a link to that file in the repository."""

    def rewritten(match: re.Match[str]) -> str:
        path, _, anchor = match.group().partition("#")
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), path))
        if target.startswith("docs/"):
            return match.group()
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, target)
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{config.extra['source']}/{kind}/main/{target}" + (f"#{anchor}" if anchor else "")

    return LINK.sub(rewritten, markdown)
