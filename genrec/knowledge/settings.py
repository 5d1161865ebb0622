"""`knowledge.json`: what a knowledge folder says of the texts that are written with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from genrec.errors import in_words, shown
from genrec.json_files import read_json
from genrec.knowledge.prompt import DEFAULT_LIMITS, PromptLimits

SETTINGS = "knowledge.json"
_FORMAT = 1
_MOST = 1 << 20


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
            stored = read_json(path)
            if not isinstance(stored, dict):
                raise ValueError("is no JSON object")
            found = stored.pop("format")
            if found != _FORMAT:
                raise ValueError(f"has format {shown(found)}, this version reads {_FORMAT}; build the folder again")
            limits = {"max_new_tokens": stored["max_new_tokens"], **stored["limits"]}
            for name, value in limits.items():
                if type(value) is not int or not 1 <= value <= _MOST:
                    raise ValueError(f"{name} is {shown(value)}; it must be a whole number of 1 to {_MOST}")
            return cls(limits.pop("max_new_tokens"), PromptLimits(**limits))
        except (OSError, ValueError, LookupError, TypeError) as error:
            said = "is missing" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else in_words(error)
            raise ValueError(f"{path}: {said}; give the folder that `genrec knowledge build` writes") from error
