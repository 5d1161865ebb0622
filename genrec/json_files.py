"""JSON that others wrote: bundles, stores, folders. Whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 64 << 20  # of a file: 50 MB is a manifest of 300,000 files


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, for one that is nested too deep for the reader as well."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None


def read_json(path: Path) -> Any:
    """The value in a file of JSON in UTF-8. Raises OSError, and ValueError for one that is too large or no JSON."""
    if (size := path.stat().st_size) > MOST_JSON_BYTES:
        raise ValueError(f"has {size} bytes; at most {MOST_JSON_BYTES} are read")
    return parse_json(path.read_text(encoding="utf-8"))
