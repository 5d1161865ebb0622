"""Knowledge folders that somebody has tampered with: settings, pools and their index, the router."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from genrec.knowledge.drafter import PoolDrafter, RunningText
from genrec.knowledge.groups import GroupRouter
from genrec.knowledge.pools import Pools
from genrec.knowledge.settings import SETTINGS, KnowledgeSettings
from tests.fuzz.bundles import members, npz
from tests.fuzz.hostile import OUTSIDE, mutated, written
from tests.fuzz.runner import Feed, Target


@contextmanager
def settings(scratch: Path) -> Iterator[Feed]:
    KnowledgeSettings().save(scratch)
    path = scratch / SETTINGS
    good = json.loads(path.read_text())

    def feed(rng: random.Random) -> None:
        path.write_bytes(written(rng, mutated(rng, good)))
        found = KnowledgeSettings.load(scratch)
        assert found.max_new_tokens > 0 and found.limits.history > 0

    yield feed


@contextmanager
def pools(scratch: Path) -> Iterator[Feed]:
    folder = scratch / "pools"
    made = Pools(50)
    texts = [np.arange(9), np.arange(5, 20), np.arange(3)]
    made.add(texts, ["a", "b", "a"])
    made.save(folder)
    index = folder / "pools.json"
    files = {path.name: members(path) for path in folder.glob("*.npz")}
    good, whole = json.loads(index.read_text()), {name: (folder / name).read_bytes() for name in files}

    def feed(rng: random.Random) -> None:
        index.write_text(json.dumps(good))
        name = rng.choice(list(files))
        try:
            kind = rng.randrange(3)
            if kind == 0:
                index.write_bytes(written(rng, mutated(rng, good)))
            elif kind == 1:
                index.write_text(json.dumps(good | {"files": {"global": rng.choice((OUTSIDE, "/etc/passwd", name))}}))
            else:
                (folder / name).write_bytes(npz(rng, files[name]))
            found = Pools.load(folder)
            PoolDrafter(found).draft([RunningText(texts[0], 0, "a", 4)])
        finally:
            (folder / name).write_bytes(whole[name])

    yield feed


@contextmanager
def routers(scratch: Path) -> Iterator[Feed]:
    path = scratch / "router.npz"
    rng_numbers = np.random.default_rng(0)
    GroupRouter(
        embeddings=rng_numbers.normal(size=(6, 4)).astype(np.float32),
        interactions=np.array([0, 5, 5, 5, 1, 0]),
        categories=np.array(["a", "b", "", "a", "b", "c"]),
        user_centroids=np.eye(2, 4, dtype=np.float32),
        item_centroids=np.eye(2, 4, dtype=np.float32),
        min_interactions=np.array(3),
    ).save(path)
    good = members(path)

    def feed(rng: random.Random) -> None:
        path.write_bytes(npz(rng, good))
        found = GroupRouter.load(path)
        found.user_group(np.array([1, 2, 3, 99]))

    yield feed


TARGETS = [
    Target("knowledge-settings", settings, (ValueError,), share=4, says=r"knowledge\.json: .+; give the folder"),
    Target("knowledge-pools", pools, (ValueError,), share=2, says=r"pools/[^:]+: ."),
    Target("knowledge-router", routers, (ValueError,), share=2, says=r"router\.npz: ."),
]
