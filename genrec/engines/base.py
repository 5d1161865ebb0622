"""What every engine does: prompts in, drafted codes and scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec.catalog import PrefixTable, PrefixTrie, RuleMasks

EXACT = 1e-3  # how much scores in float32 may differ between engines
RULE_BYTES = 64 << 20  # of the masks of all rules; the CPU's memory is taken when they are built


@dataclass(frozen=True)
class Drafts:
    """A batch of beams, best first, ties by ascending code.

    codes: int64 [B, K], mixed-radix semantic IDs. scores: float32 [B, K], log-probability, -inf for a dead beam.
    """

    codes: np.ndarray
    scores: np.ndarray

    @classmethod
    def ordered(cls, codes: np.ndarray, scores: np.ndarray) -> Drafts:
        """Drafts of beams that come by falling score, with ties put in order of their code."""
        if np.any(scores[:, 1:] == scores[:, :-1]):
            order = np.lexsort((codes, -scores), axis=1)
            codes, scores = np.take_along_axis(codes, order, 1), np.take_along_axis(scores, order, 1)
        return cls(codes, scores)

    @classmethod
    def none(cls, batch: int, beam_width: int) -> Drafts:
        """Dead beams only: the answer to empty prompts."""
        shape = batch, beam_width
        return cls(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))


class Engine(ABC):
    """One prefill of the backbone and the draft head's beam, on one device.

    masks: the catalogue's valid prefixes. beam_width: K. rule_bytes: limit of the masks of all rules together; None for
    a model that takes none.
    Subclasses implement `_prepared` and `_run`.
    """

    copies_masks = False  # whether it drafts with a copy of the masks, which has to be told of changes
    score_tolerance = EXACT  # by how much a score may differ from that of the PyTorch engine in float32

    def __init__(self, masks: PrefixTable | PrefixTrie, beam_width: int, rule_bytes: int | None = RULE_BYTES) -> None:
        """Raises ValueError for a limit below 32 bytes."""
        self.beam_width = beam_width
        self._rule_masks = None
        if rule_bytes is not None and isinstance(masks, PrefixTable):
            self._rule_masks = RuleMasks(masks.space, rule_bytes, masks.following())
        self._masks = {True: self._prepared(masks), False: self._prepared(masks.unrestricted())}

    def set_masks(self, table: PrefixTable) -> None:
        """Draft with the masks of `table` from the next call on; a call under way ends with those that it began with.

        May be called while another thread drafts. Raises ValueError for an engine that cannot take it.
        """
        self._masks = {**self._masks, True: self._prepared(table)}
        self._follow(table)

    def _follow(self, table: PrefixTable) -> None:
        """Make the masks of rules as wide as they have to be beside those of `table`."""
        if self._rule_masks is not None:
            self._rule_masks.following = table.following()

    def update_masks(self, changed: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:  # noqa: B027 - most engines read the table itself
        """Take over what has changed of the table that was set last, where the engine drafts with a copy on a device.

        changed: as of `PrefixTable.slots`. On the CPU changes are seen without this call.
        """

    @property
    def takes_rules(self) -> bool:
        """Whether the model can narrow a request's beam down by a rule. The graphs of older bundles cannot."""
        return self._rule_masks is not None

    @property
    def rule_masks(self) -> RuleMasks:
        """Where the masks of rules are built that this engine drafts with. Raises ValueError if it takes none."""
        if self._rule_masks is None:
            raise ValueError(
                "this engine takes no rules: its bundle was exported before there were any; make a newer one of it "
                "with `genrec export`, or `genrec export-tensorrt-llm`"
            )
        return self._rule_masks

    def update_rules(self, rows: np.ndarray) -> None:  # noqa: B027 - as `update_masks`
        """Take over rows of `rule_masks`, int64 [n], where the engine drafts with a copy on a device.

        Call it after `RuleMasks.build` and `add`, with the rows of `RuleMasks.rows`, before a draft needs them. On the
        CPU changes are seen without this call.
        """

    def draft(
        self, prompts: Sequence[np.ndarray], *, masked: bool = True, rules: Sequence[np.ndarray | None] | None = None
    ) -> Drafts:
        """Draft K semantic IDs for each prompt.

        prompts: int32 [P_b] each, as `PromptLayout.encode` makes them. masked: whether only prefixes that exist in
        the catalogue are drafted. rules: of each prompt, masks of `rule_masks`, int64 [L, 2], or None; they hold with
        masked and without. None for all where no prompt has one. Raises ValueError for rules that the engine cannot
        take, or that are no masks of its `rule_masks`.
        """
        rows = self._rule_rows(len(prompts), rules)
        lengths = np.fromiter(map(len, prompts), np.int32, len(prompts))
        asked = lengths > 0
        if not asked.all():  # an empty prompt (nothing known of the user) drafts nothing
            all_drafts = Drafts.none(len(prompts), self.beam_width)
            if asked.any():
                some = [prompt for prompt in prompts if len(prompt)]
                drafts = self._draft(some, lengths[asked], masked, None if rows is None else rows[asked])
                all_drafts.codes[asked], all_drafts.scores[asked] = drafts.codes, drafts.scores
            return all_drafts
        return self._draft(prompts, lengths, masked, rows)

    def _draft(
        self, prompts: Sequence[np.ndarray], lengths: np.ndarray, masked: bool, rows: np.ndarray | None
    ) -> Drafts:
        """The same of prompts that are not empty, with the masks of their rules, int64 [B, 2 L]."""
        if len(prompts) == 1:
            token_ids = prompts[0][None]
        else:
            token_ids = np.zeros((len(prompts), lengths.max()), np.int32)
            token_ids[np.arange(token_ids.shape[1]) < lengths[:, None]] = np.concatenate(prompts)
        return Drafts.ordered(*self._run(token_ids, lengths, self._masks[masked], rows))

    def _rule_rows(self, batch: int, rules: Sequence[np.ndarray | None] | None) -> np.ndarray | None:
        """The masks of a batch's rules, int64 [B, 2 L], row 0 where there is none; None if the model takes none."""
        if rules is None:
            return None if self._rule_masks is None else self._rule_masks.stacked([None] * batch)
        if len(rules) != batch:
            raise ValueError(f"{len(rules)} rules for {batch} prompts; give each prompt its rule or None")
        return self.rule_masks.stacked(rules)

    def warm_up(self, prompt: np.ndarray, batch: int, masked: bool = True) -> None:
        """Run once what takes long for the first time, before batches of up to `batch` prompts come.

        prompt: any that the model can take, int32 [P].
        """
        self.draft([prompt] * batch, masked=masked)

    def close(self) -> None:  # noqa: B027 - most engines have nothing to end
        """End what runs outside of calls."""

    @abstractmethod
    def _prepared(self, masks: PrefixTable | PrefixTrie) -> Any:
        """What `_run` needs of some masks, made once."""

    @abstractmethod
    def _run(
        self, token_ids: np.ndarray, lengths: np.ndarray, masks: Any, rule_rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Right-padded token ids int32 [B, S], lengths int32 [B] -> codes int64 [B, K], scores float32 [B, K].

        rule_rows: the masks of their rules, int64 [B, 2 L]; None if the model takes none.
        """


class InFlightEngine(Engine):
    """An engine that takes requests one by one and forms the batches itself, of whatever is in flight."""

    @abstractmethod
    def submit(
        self,
        prompt: np.ndarray,
        deadline_ns: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        rule: np.ndarray | None = None,
    ) -> Future[Drafts]:
        """Draft for one prompt, int32 [P], with prefix masks: a future of `Drafts` [1, K].

        deadline_ns: on CLOCK_MONOTONIC. cancelled(): whether nobody waits any more; may be asked from another thread.
        rule: its mask, of `rule_masks`, int64 [L, 2], or None. Raises ValueError for a prompt or a rule that the model
        cannot take. The future raises DeadlineExceeded, Cancelled, or
        what the model reports of this request.
        """
