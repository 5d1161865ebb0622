"""What kept work was made of, so that it is never used for other work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

# What a result depends on: name in words -> value in words, files and arrays by their content.
Fingerprint = Mapping[str, str]
NOTHING = "none"


def require_same(place: Path, kept: Fingerprint, now: Fingerprint, remedy: str) -> None:
    """Raises ValueError, which names `place`, what differs and `remedy`, unless both fingerprints are the same."""
    names = dict.fromkeys([*now, *kept])
    changed = [name for name in names if kept.get(name, NOTHING) != now.get(name, NOTHING)]
    if changed:
        listed = "; ".join(f"{name} {kept.get(name, NOTHING)}, now {now.get(name, NOTHING)}" for name in changed)
        raise ValueError(f"{place}: was made with other input or settings ({listed}); {remedy}")


def digest(parts: Iterable[bytes]) -> str:
    """A short SHA-256 of byte strings, each with its length."""
    whole = sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their own name in words: {"training": {"learning_rate": 0.1}} -> {"learning rate": "0.1"}."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        found |= flat(value) if isinstance(value, Mapping) else {name.replace("_", " "): _words(value)}
    return found


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
