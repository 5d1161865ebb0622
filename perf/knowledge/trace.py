"""What could be drafted at every place of texts that a model wrote, and how far it would have been accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from genrec.arrays import load_archive
from genrec.knowledge.drafter import Drafter, RunningText
from genrec.knowledge.texts import TextRequest
from genrec.knowledge.token_tree import TokenTree


@dataclass(frozen=True, eq=False)
class Trace:
    """Texts, and the token tree that is drafted behind each of their tokens but the last.

    prompts, lengths: int64 [texts], tokens of prompts and of texts. first: int64 [texts], where a text's places begin.
    ends: int64 [places], where a place's nodes end; places of a text follow one another. Of the nodes, best first, a
    parent before its children: shares float32 [n], depths int8 [n], from 1, and accepted bool [n], whether the text
    goes on with the branch down to it.
    """

    prompts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    ends: np.ndarray
    shares: np.ndarray
    depths: np.ndarray
    accepted: np.ndarray

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Trace:
        stored = load_archive(path, "trace of texts")
        return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def of(self, texts: int) -> Trace:
        """Of the first `texts` texts alone."""
        return replace(self, prompts=self.prompts[:texts], lengths=self.lengths[:texts], first=self.first[:texts])

    def nodes(self, texts: np.ndarray, written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the nodes are that are drafted for `texts`, int [t], behind `written` tokens, 1 to length - 1.

        Gives (places among the nodes, which of `texts`), int64 [n] each.
        """
        place = self.first[texts] + written - 1
        begins = np.where(place > 0, self.ends[place - 1], 0)
        counts = self.ends[place] - begins
        owner = np.arange(texts.size).repeat(counts)
        return begins[owner] + np.arange(owner.size) - (counts.cumsum() - counts)[owner], owner


def traced(drafter: Drafter, requests: Sequence[TextRequest], texts: Sequence[np.ndarray]) -> Trace:
    """A trace of `texts`, int32 [n] each, n >= 1, that were written for `requests`. drafter: of large trees."""
    ends, shares, depths, accepted = [0], [], [], []
    for request, text in zip(requests, texts, strict=True):
        tokens = np.concatenate([request.prompt, text]).astype(np.int32)
        running = [
            RunningText(
                tokens[: request.prompt.size + written],
                request.prompt.size,
                request.group,
                max(1, request.max_new_tokens - written - 1),
            )
            for written in range(1, text.size)
        ]
        for written, tree in enumerate(drafter.draft(running).split() if running else [], 1):
            ends.append(ends[-1] + tree.size)
            shares.append(tree.shares)
            depths.append(tree.depths)
            accepted.append(on_the_way(tree, text[written:]))
    lengths = np.array([text.size for text in texts])
    return Trace(
        prompts=np.array([request.prompt.size for request in requests]),
        lengths=lengths,
        first=np.cumsum(lengths - 1) - (lengths - 1),
        ends=np.array(ends[1:]),
        shares=np.concatenate(shares),
        depths=np.concatenate(depths).astype(np.int8),
        accepted=np.concatenate(accepted),
    )


def on_the_way(tree: TokenTree, following: np.ndarray) -> np.ndarray:
    """Which nodes of `tree` the tokens `following`, int [n], go through: bool [nodes]."""
    depths = tree.depths
    inside = depths <= following.size
    same = inside & (tree.tokens == following[np.where(inside, depths - 1, 0)] if following.size else False)
    for _ in range(int(depths.max(initial=0))):
        same &= (tree.parents < 0) | same[np.maximum(tree.parents, 0)]
    return same
