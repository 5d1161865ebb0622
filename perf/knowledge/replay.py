"""Replays a trace of texts under a cost of passes: how fast they would be written, so many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from perf.knowledge.pass_cost import Cost
from perf.knowledge.trace import Trace

_PAUSE = 64  # steps without drafts while these do not pay
_PACE = 1 / 16  # weight of a step in the means that tell
_BINS = np.linspace(0, 1, 21)

# Which drafted tokens a step verifies, bool [n]: of their shares, depths and texts, [n] each, best first within a text;
# the seconds of a pass with the first 0 to n drafted tokens, float64 [n + 1]; and the number of texts.
Choice = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def fixed_trees(max_nodes: int, min_share: float) -> Choice:
    """At most `max_nodes` tokens a text, each with at least `min_share`."""

    def choose(
        shares: np.ndarray, depths: np.ndarray, owner: np.ndarray, seconds: np.ndarray, texts: int
    ) -> np.ndarray:
        rank = np.arange(owner.size) - owner.searchsorted(owner)
        return (rank < max_nodes) & (shares >= min_share)

    return choose


def by_load(chances: Chances) -> Choice:
    """As many as make the texts grow fastest: the most expected tokens per second of the pass, over all texts."""

    def choose(
        shares: np.ndarray, depths: np.ndarray, owner: np.ndarray, seconds: np.ndarray, texts: int
    ) -> np.ndarray:
        expected = chances.of(shares, depths)
        best = (-expected).argsort(kind="stable")
        grown = texts + np.append(0.0, expected[best].cumsum())
        chosen = np.zeros(owner.size, bool)
        chosen[best[: int((grown / seconds).argmax())]] = True
        return chosen

    return choose


class Chances:
    """How probable it is that a drafted token is accepted, by its share and depth, as it was in a trace.

    Chances rise with the share and fall with the depth, so that no branch is cut within.
    """

    def __init__(self, trace: Trace) -> None:
        at, depth = self._cell(trace.shares, trace.depths)
        shape = (_BINS.size, int(trace.depths.max(initial=1)))
        cell = at * shape[1] + depth
        drafted = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        accepted = np.bincount(cell, trace.accepted, shape[0] * shape[1]).reshape(shape)
        table = (accepted + 4 * _BINS[:, None]) / (drafted + 4)
        self._table = np.minimum.accumulate(np.maximum.accumulate(table, 0), 1)

    @staticmethod
    def _cell(shares: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.rint(shares * (_BINS.size - 1)).astype(np.int64), depths.astype(np.int64) - 1

    def of(self, shares: np.ndarray, depths: np.ndarray) -> np.ndarray:
        at, depth = self._cell(shares, depths)
        return np.asarray(self._table[at, np.minimum(depth, self._table.shape[1] - 1)])


@dataclass(frozen=True)
class Replayed:
    """tokens_per_s: written. tokens_per_step, drafted: that a pass adds to a text, and that it verifies of it."""

    tokens_per_s: float
    tokens_per_step: float
    drafted: float


def replay(
    trace: Trace,
    batch_size: int,
    cost: Cost,
    choose: Choice | None,
    *,
    draft_s: float = 0.0,
    pauses: bool = False,
    texts: int | None = None,
) -> Replayed:
    """Write the texts of `trace`, as many of them at once as a session would.

    choose: what a step verifies; None for one token at a time. draft_s: seconds to draft for a text, added to a pass.
    pauses: whether steps go without drafts, and without drafting, while these did not pay of late. texts: how many are
    written, those of the trace over and over; each once by default.
    """
    count = len(trace.lengths) if texts is None else texts
    waiting = iter(np.arange(count) % len(trace.lengths))
    running, written = np.empty(0, np.int64), np.empty(0, np.int64)
    seconds, text_steps, tokens, drafted, pause = 0.0, 0, 0, 0, 0
    worth, price = 2.0, 1.0  # tokens and seconds of a step with drafts over one without, of late
    while True:
        begun = np.array(list(islice(waiting, batch_size - running.size)), np.int64)
        prompt_tokens = int(trace.prompts[begun].sum())
        if not begun.size and not running.size:
            break
        if not cost.together:
            running, written = _with(trace, running, written, begun)
        cached = int((trace.prompts[running] + written).sum())
        of_step = partial(cost.seconds, running.size, cached=cached, begun=begun.size, prompt_tokens=prompt_tokens)
        alone = float(of_step(packed=np.array([running.size]))[0])
        growth, spent = np.ones(running.size, np.int64), alone
        pause -= 1
        if choose is not None and pause < 0 and running.size:
            nodes, owner = trace.nodes(running, written)
            seconds_of = of_step(packed=np.arange(running.size, running.size + nodes.size + 1))
            chosen = choose(trace.shares[nodes], trace.depths[nodes], owner, seconds_of, running.size)
            growth += np.bincount(owner, chosen & trace.accepted[nodes], running.size).astype(np.int64)
            spent = float(seconds_of[int(chosen.sum())]) + draft_s * running.size
            drafted += int(chosen.sum())
            worth += _PACE * (growth.mean() - worth)
            price += _PACE * (spent / alone - price)
            if pauses and price > worth:
                pause = _PAUSE
        before = written
        written = np.minimum(written + growth, trace.lengths[running])
        seconds, text_steps = seconds + spent, text_steps + running.size
        tokens += int((written - before).sum()) + begun.size
        running, written = _with(trace, running, written, begun if cost.together else begun[:0])
    return Replayed(tokens / seconds, (tokens - count) / max(1, text_steps), drafted / max(1, text_steps))


def _with(trace: Trace, running: np.ndarray, written: np.ndarray, begun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The texts that are not finished, and those that have `begun` with their first tokens; tokens written of each."""
    running, written = np.append(running, begun), np.append(written, np.ones(begun.size, np.int64))
    left = written < trace.lengths[running]
    return running[left], written[left]
