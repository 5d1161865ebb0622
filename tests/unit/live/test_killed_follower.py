"""The follower is killed at every step of what it does: readers find a whole version, and the next follower goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.catalog import PrefixTable
from genrec.catalog.published import BASES
from genrec.catalog.sorting import Sorter
from genrec.live import follower
from tests.unit.live.test_fold import SPACE, Item, assert_holds
from tests.unit.live.test_follower import MemoryStore, published, start

FIRST: dict[str, Item] = {f"i{number}": (number % SPACE.size, number, True) for number in range(8)}


class KilledAt:
    """Ends this process by SIGKILL at the n-th call of what it counts."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted


def work_until_killed(running: follower.Follower, step: int) -> bool:
    """Let a copy of this process follow, and be killed at the given step; whether it came to the end before that."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0) or os.WTERMSIG(status) == signal.SIGKILL
        return os.WIFEXITED(status)
    try:
        kill = KilledAt(step)
        np.save = kill(np.save)
        np.lib.format.open_memmap = kill(np.lib.format.open_memmap)
        Sorter.add, Sorter.merged = kill(Sorter.add), kill(Sorter.merged)  # type: ignore[method-assign]
        os.rename, os.symlink, os.unlink, os.mkdir = map(kill, (os.rename, os.symlink, os.unlink, os.mkdir))
        shutil.rmtree = kill(shutil.rmtree)
        for name in ("add", "discard"):
            setattr(PrefixTable, name, kill(getattr(PrefixTable, name)))
        for _ in range(4):
            running.look()
            if running._rebase is not None:
                running._rebase.process.wait()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.training
def test_a_follower_killed_at_any_step_leaves_a_whole_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "most_touched", lambda items: 1)  # a new base is made, too
    step, ended = 0, False
    while not ended:
        step += 1
        root, store, log = tmp_path / str(step), MemoryStore(dict(FIRST)), list[str]()
        running = start(store, root, log)
        store.commit({"new": (3, 9, True), "i0": None})
        last = store.commit({"i1": (5, None, None), "new": (None, None, False)})
        ended = work_until_killed(running, step)
        found = published(root)
        assert found.version in (0, last)
        assert_holds(found, store.states[found.version])

        monkeypatch.setattr(follower, "most_touched", lambda items: 100)
        again = start(store, root, log)
        for _ in range(2):
            again.look()
        assert_holds(published(root), store.states[last])
        allowed = again._base.masks.allows(np.arange(SPACE.size))
        live = {code for code, _, available in store.states[last].values() if available}
        assert set(np.flatnonzero(allowed).tolist()) == live
        assert not log
        assert not list(root.glob("*/.unfinished-*")) and not list((root / BASES).glob("*/scratch"))
        last = store.commit({"i0": (2, 2, True)})
        again.look()
        assert_holds(published(root), store.states[last])
        monkeypatch.setattr(follower, "most_touched", lambda items: 1)
    assert step > 20  # it does so much
