"""`knowledge.json`: what a knowledge folder says of the texts that are written with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from genrec.errors import in_words
from genrec.knowledge.prompt import DEFAULT_LIMITS, PromptLimits

SETTINGS = "knowledge.json"
_FORMAT = 1


@dataclass(frozen=True)
class KnowledgeSettings:
    """knowledge.json. max_new_tokens: of a text, unless the request asks for fewer. limits: of its prompt."""

    max_new_tokens: int = 192
    limits: PromptLimits = DEFAULT_LIMITS

    def save(self, folder: Path) -> None:
        (folder / SETTINGS).write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> KnowledgeSettings:
        """Raises ValueError that names the file and what is wrong with it."""
        path = folder / SETTINGS
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, dict):
                raise ValueError("is no JSON object")
            found = stored.pop("format")
            if found != _FORMAT:
                raise ValueError(f"has format {found}, this version reads {_FORMAT}; build the folder again")
            return cls(stored["max_new_tokens"], PromptLimits(**stored["limits"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            said = "is missing" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else in_words(error)
            raise ValueError(f"{path}: {said}; give the folder that `genrec knowledge build` writes") from error
