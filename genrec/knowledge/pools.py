"""One retrieval pool per group of entities, and one of all texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genrec.errors import in_words, shown
from genrec.json_files import read_json
from genrec.knowledge.continuations import Continuations
from genrec.knowledge.pool import RetrievalPool
from genrec.knowledge.pool_search import continuations

GLOBAL = "global"

_INDEX = "pools.json"
_FORMAT = 1


class Pools:
    """Retrieval pools by the group that `GroupRouter` names; `GLOBAL` holds every text.

    A text of a group drafts from its group's pool and from the global one.

    vocabulary_size: tokens are 0 to vocabulary_size - 1. max_tokens: most tokens per group. max_global_tokens: most
    tokens of all texts together. sources: names of what was added, for those who must not add it again; saved with the
    pools, and otherwise ignored.
    """

    def __init__(self, vocabulary_size: int, max_tokens: int = 1 << 24, max_global_tokens: int = 1 << 27) -> None:
        self.vocabulary_size, self.max_tokens = vocabulary_size, max_tokens
        self.by_group = {GLOBAL: RetrievalPool(vocabulary_size, max_global_tokens)}
        self.sources: list[str] = []

    @property
    def dtype(self) -> np.dtype:
        """Of the codes of all pools."""
        return self.by_group[GLOBAL].dtype

    def add(self, texts: Sequence[np.ndarray], groups: Sequence[str]) -> None:
        """Add `texts`, int [any length] each, to the pools of their `groups` and to the global one.

        Raises ValueError for a token outside the vocabulary; nothing is added then.
        """
        if len(texts) != len(groups):
            raise ValueError(f"{len(texts)} texts were given with {len(groups)} groups; give one group per text")
        self.by_group[GLOBAL].add(texts)
        members: dict[str, list[np.ndarray]] = {}
        for text, group in zip(texts, groups, strict=True):
            members.setdefault(group, []).append(text)
        members.pop(GLOBAL, None)
        for group, own in members.items():
            if group not in self.by_group:
                self.by_group[group] = RetrievalPool(self.vocabulary_size, self.max_tokens)
            self.by_group[group].add(own)

    def continuations(
        self, texts: Sequence[np.ndarray], groups: Sequence[str], of_groups: bool = True
    ) -> Continuations:
        """What followed the last tokens of running `texts`, int [any length] each, without their prompts.

        groups: of the texts. Each asks the global pool, source 0, and the pool of its group, if there is one and with
        `of_groups`, source 1.
        """
        own = [at for at, group in enumerate(groups) if of_groups and group in self.by_group and group != GLOBAL]
        pools = [self.by_group[GLOBAL]] * len(texts) + [self.by_group[groups[at]] for at in own]
        sources = np.array([0] * len(texts) + [1] * len(own))
        return continuations(pools, texts, np.array([*range(len(texts)), *own]), sources)

    def save(self, folder: Path) -> None:
        """Write the pools into `folder`, which then holds either the old or the new ones, whole.

        A file per group, and `pools.json`, which names them: files of the pools before have other names.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = {path: int(found[0]) for path in folder.glob("*.npz*") if (found := re.match(r"\d+", path.name))}
        version = 1 + max(before.values(), default=-1)
        files = {group: f"{version}-{number}.npz" for number, group in enumerate(self.by_group)}
        for group, file in files.items():
            self.by_group[group].save(folder / file)
        index = {
            "format": _FORMAT,
            "vocabulary_size": self.vocabulary_size,
            "max_tokens": self.max_tokens,
            "sources": self.sources,
            "files": files,
        }
        partial = folder / f"{_INDEX}.partial"
        partial.write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(partial, folder / _INDEX)
        for path in before:
            path.unlink()

    @classmethod
    def load(cls, folder: Path) -> Pools:
        """The pools in `folder`. Raises ValueError that names the file and what is wrong with it."""
        path = folder / _INDEX
        try:
            index = read_json(path)
            if index["format"] != _FORMAT:
                raise ValueError(
                    f"has format {shown(index['format'])}, this version reads {_FORMAT}; build the pools again"
                )
            for name in ("vocabulary_size", "max_tokens"):
                if type(index[name]) is not int or not 0 < index[name] < 2**31:
                    raise ValueError(f"{name} is {shown(index[name])}; it must be a whole number of 1 to {2**31 - 1}")
            pools = cls(index["vocabulary_size"], index["max_tokens"])
            pools.sources = list(map(str, index.get("sources", [])))
            for file in index["files"].values():
                if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]{0,99}", file):
                    raise ValueError(f"names {shown(file)}, which is no name of a file beside it")
            files = {str(group): folder / file for group, file in index["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: cannot be read as an index of retrieval pools: {in_words(error)}") from error
        if GLOBAL not in files:
            raise ValueError(f"{path}: names no pool of the group {GLOBAL!r}")
        pools.by_group = {group: RetrievalPool.load(file) for group, file in files.items()}
        for group, pool in pools.by_group.items():
            if pool.vocabulary_size != pools.vocabulary_size:
                raise ValueError(
                    f"{files[group]}: is for a vocabulary of {pool.vocabulary_size}, the others are for "
                    f"{pools.vocabulary_size}"
                )
        return pools
