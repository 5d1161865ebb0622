"""Changes of a live catalogue under load: each adds an item and removes one, and every pod is asked until both show.

Also a script, for a pod of the cluster: python changes.py HOST:PORT HISTORY prints what each address of the name
answers, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrec_client import Recommender

TIMEOUT_S = 60.0
ASK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What one pod recommends. items: ids, best first; drafted: those of them that are no fallback."""

    version: int
    items: list[str]
    drafted: list[str]


def ask(recommender: Recommender, history: list[str]) -> Answer:
    """Raises RecommendError if the pod does not answer."""
    answer = recommender.recommend(history)
    drafted = [item.item_id for item in answer.items if item.source == 0]
    return Answer(int(answer.catalog_version), list(answer.item_ids), drafted)


def change(location: str, ask_all: Callable[[], list[Answer]], count: int, period_s: float) -> dict[str, Any]:
    """Commit `count` versions, one each `period_s` seconds or as soon as the one before shows.

    ask_all: gives an answer of every pod, to the same history each time. Each version removes the best item, and adds
    one with its semantic ID, which is then as good.

    Returns how many were made; the seconds from the beginning of a commit until every pod answered with its version, at
    p50 and at most; and how many answers held what their version does not, or lacked what it does.
    Raises CatalogStoreError if the store cannot be written to, and TimeoutError if a version does not show.
    """
    import pyarrow as pa

    from genrec.live.changes import Changes
    from genrec.live.store import CatalogStore

    store = CatalogStore.open(location)
    version, shown_s, wrong = store.latest(), [], 0
    best = ask_all()[0].drafted[0]
    (sid,) = store.lookup(pa.array([best], pa.large_string()), version)["sid"].to_pylist()
    code = int(store.space.encode(np.array([sid]))[0])
    for number in range(count):
        began_s = time.monotonic()
        new = f"e2e-{version + 1}"
        changes = Changes(
            np.array([new.encode(), best.encode()]),
            np.array([False, True]),
            np.array([code, -1]),
            np.array([1 << 40, -1]),
            np.array([1, -1], np.int8),
        )
        version = store.commit(changes, version, f"e2e, change {number + 1} of {count}")
        while True:
            answers = ask_all()
            for answer in answers:
                has_new, has_old = new in answer.drafted, best in answer.items
                wrong += has_new != (answer.version >= version) or has_old == (answer.version >= version)
            if all(answer.version >= version for answer in answers):
                break
            if time.monotonic() - began_s > TIMEOUT_S:
                raise TimeoutError(f"version {version} of {location} does not show in {TIMEOUT_S:g} s: {answers}")
            time.sleep(ASK_EVERY_S)
        shown_s.append(time.monotonic() - began_s)
        best = new
        time.sleep(max(0.0, began_s + period_s - time.monotonic()))
    return {
        "count": count,
        "shown_p50_s": float(np.median(shown_s)),
        "shown_most_s": max(shown_s),
        "wrong_answers": int(wrong),
    }


def main(address: str, history: str) -> None:
    """Print the answer of every address that the host's name leads to."""
    host, _, port = address.rpartition(":")
    found = {entry[4][0] for entry in socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)}
    answers = []
    for ip in sorted(map(str, found)):
        with Recommender(f"{ip}:{port}", timeout_s=5.0) as recommender:
            one = ask(recommender, [history])
            answers.append({"version": one.version, "items": one.items, "drafted": one.drafted})
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
