"""What a decoder is asked for, when it accepts a drafted token, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from genrec.knowledge.pools import GLOBAL


@dataclass(frozen=True)
class Verification:
    """When a drafted token is accepted: DARE (arXiv 2408.05676), relaxed verification.

    It is accepted if it is the model's most probable token, which the model would write itself, or if it is among the
    `top_k` most probable ones and its probability exceeds `threshold`. The defaults are greedy verification: the text
    is the one that plain greedy decoding gives.
    """

    top_k: int = 1
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, which is greedy verification")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must be at least 0 and below 1")


GREEDY = Verification()


@dataclass(frozen=True)
class TextRequest:
    """A text to be written.

    prompt: int [p], at least one token. group: of the entity, as `GroupRouter` names it. max_new_tokens: most tokens to
    write, a stop token included.
    """

    prompt: np.ndarray
    group: str = GLOBAL
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Generated:
    """A finished text.

    index: which request, in order of submission from 0. tokens: int32 [n], without the prompt, with the stop token if
    `stopped`; otherwise it ended at its limit. steps: forward passes after the prompt's. accepted: its drafted tokens.
    """

    index: int
    tokens: np.ndarray
    stopped: bool
    steps: int
    accepted: int


@dataclass(frozen=True)
class TextProgress:
    """What a step wrote of one text: tokens int32 [n], n >= 1; `finished` once it is whole."""

    index: int
    tokens: np.ndarray
    finished: Generated | None


@dataclass
class DecodingStatistics:
    """Of all the texts of a session.

    tokens: written. steps: forward passes after the prompts'. text_steps: the same, counted once for each text in them.
    drafted_by_depth, accepted_by_depth: {depth from 1: draft tokens}. llm_s: seconds in the model, prompts included;
    draft_s: in the drafter; total_s: in all of `step`.
    """

    texts: int = 0
    tokens: int = 0
    steps: int = 0
    text_steps: int = 0
    drafted_by_depth: dict[int, int] = field(default_factory=dict)
    accepted_by_depth: dict[int, int] = field(default_factory=dict)
    llm_s: float = 0.0
    draft_s: float = 0.0
    total_s: float = 0.0

    @property
    def other_s(self) -> float:
        """Seconds in neither the model nor the drafter."""
        return self.total_s - self.llm_s - self.draft_s

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a forward pass adds to a text; 1 without drafts. A text's first token comes with its prompt."""
        return (self.tokens - self.texts) / max(1, self.text_steps)
