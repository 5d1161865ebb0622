"""The tokens that clients show to the front: a file of names and SHA-256 hashes, never of the tokens themselves.

shop-web 5e884898da28047151d0e56f8dc6292773603d0d6aabb0d87d9c3f8f6ef1d1a9
batch    9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

from __future__ import annotations

import re
from pathlib import Path

from genrec.serving.front.haproxy import FrontError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})\s+([0-9a-fA-F]{64})")
_MOST_BYTES = 1 << 20  # 10,000 clients
_HOW = "write a name and the token's SHA-256 as 64 hexadecimal digits (`printf %s TOKEN | sha256sum`)"


def read_tokens(path: Path) -> dict[str, str]:
    """The names of clients by the hash of their token, in lower case. A client may have several tokens.

    Lines that are empty or begin with # are passed over. Raises FrontError that names the line, and never what stands
    there: it may be a token.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FrontError(f"{path}: has {path.stat().st_size} bytes; at most {_MOST_BYTES} are read")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FrontError(f"{path}: the file of tokens cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FrontError(f"{path}: is not UTF-8; {_HOW}") from None
    tokens: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise FrontError(f"{path}: line {number} is no name with a hash; {_HOW}")
        if tokens.setdefault(found[2].lower(), found[1]) != found[1]:
            raise FrontError(f"{path}: line {number}: two clients have this token; give each its own")
    if not tokens:
        raise FrontError(f"{path}: has no token, so nobody could ask anything; {_HOW}")
    return tokens
