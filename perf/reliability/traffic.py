"""Mixed traffic for two servers: users with rules, streams of texts, and changes of the catalogue they follow."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from genrec.bundle import Bundle
from genrec.live.apply import ADD, apply_files
from genrec.live.store import CatalogStore
from genrec_client import KnowledgeWriter, Recommendations, Recommender, Rules, attribute

TOP_K = 10
SHOWN_S = 30.0  # after so long no server may answer with an item that is gone, not even one that has just started
_KNOWN_RULES = 20
_KEPT_VERSIONS, _COMPACT_EVERY = 20, 50


@dataclass(frozen=True)
class Item:
    category: str
    brand: str
    price: float


@dataclass
class Found:
    """What became of the traffic. wrong, failed: in words, by what was asked for."""

    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)


class Traffic:
    """What users, writers and a shop do, each in threads of its own, until `stop`.

    urls: addresses of the servers, one of which may fail. texts: the one that is asked for texts. store: the live
    catalogue that both follow. rate: recommendations a second, of all users together. change_s: seconds between
    changes.
    """

    def __init__(
        self,
        bundle: Bundle,
        data: Path,
        store: str,
        urls: list[str],
        texts: str,
        scratch: Path,
        *,
        users: int = 4,
        rate: float = 10.0,
        change_s: float = 10.0,
        seed: int = 0,
    ) -> None:
        self.found = Found()
        self._bundle, self._store, self._urls, self._texts = bundle, store, urls, texts
        self._scratch, self._users, self._pause_s, self._change_s = scratch, users, users / rate, change_s
        self._ids: list[str] = [item_id.decode() for item_id in bundle.catalog.item_ids.tolist()]
        table = pq.read_table(data / "items.parquet", columns=["item_id", "category", "brand", "price"]).to_pylist()
        self._items = {row.pop("item_id"): Item(**row) for row in table}
        self._gone: dict[str, float] = {}  # items that may not be answered any more, and since when
        self._brands, self._categories = (
            sorted({getattr(item, name) for item in self._items.values()}) for name in ("brand", "category")
        )
        self._seed = seed
        self._ends = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Traffic while the block runs; what is under way at its end is finished."""
        jobs: list[Callable[[np.random.Generator], None]] = [*[self._user] * self._users, self._writer, self._shop]
        threads = [
            threading.Thread(target=self._guarded, args=(job, np.random.default_rng((self._seed, number))))
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ends.set()
            for thread in threads:
                thread.join()

    def _guarded(self, job: Callable[[np.random.Generator], None], rng: np.random.Generator) -> None:
        try:
            job(rng)
        except BaseException as error:  # a thread that ends early would pass for quiet
            self.found.failed.append(f"{job.__name__} ended: {error!r}")
            raise

    def _user(self, rng: np.random.Generator) -> None:
        with Recommender(self._urls, timeout_s=5.0) as client:
            while not self._ends.wait(rng.exponential(self._pause_s)):
                history = [str(rng.choice(self._ids)) for _ in range(rng.integers(0, 25))]
                rules, fits = self._rules(rng)
                asked = time.monotonic()
                try:
                    answer = client.recommend(history, top_k=TOP_K, rules=rules)
                except Exception as error:
                    self.found.failed.append(f"recommendation: {type(error).__name__}: {error}")
                    continue
                self.found.took_ms.append(answer.latency_ms)
                self.found.answered["recommendations"] += 1
                if wrong := self._wrong(answer, history, fits, asked):
                    self.found.wrong.append(wrong)

    def _rules(self, rng: np.random.Generator) -> tuple[Rules | None, Callable[[Item], bool]]:
        """None, one of a few that come again and again, or one that nobody asked for before; and what it lets pass."""
        kind = rng.integers(3)
        if kind == 0:
            return None, lambda item: True
        if kind == 1:
            rng = np.random.default_rng(rng.integers(_KNOWN_RULES))
        price, brand = float(rng.uniform(20, 400)), str(rng.choice(self._brands))
        some = rng.choice(self._categories, rng.integers(2, 8), replace=False).tolist()
        if rng.integers(2):
            where = attribute("category").one_of(*some)
            return Rules(where=where, at_most={"brand": 3}), lambda item: item.category in some
        where = (attribute("price") < price) & ~attribute("brand").one_of(brand)
        return Rules(where=where), lambda item: item.price < price and item.brand != brand

    def _wrong(self, answer: Recommendations, history: list[str], fits: Callable[[Item], bool], asked: float) -> str:
        ids = answer.item_ids
        if len(set(ids)) != len(ids) or set(ids) & set(history):
            return f"{ids} has items twice, or of the history {history}"
        for item_id in ids:
            if item_id not in self._items:
                return f"item {item_id} does not exist"
            if not fits(self._items[item_id]):
                return f"item {item_id}, {self._items[item_id]}, does not fit the rules"
            if self._gone.get(item_id, asked) < asked - SHOWN_S:
                return f"item {item_id} is gone for {asked - self._gone[item_id]:.0f} s"
        return ""

    def _writer(self, rng: np.random.Generator) -> None:
        with KnowledgeWriter(self._texts, timeout_s=60.0) as writer:
            while not self._ends.wait(rng.exponential(5.0)):
                history = [str(item) for item in rng.choice(self._ids, 4, replace=False)]
                try:
                    tokens = [piece.tokens for piece in writer.user(history)]
                except Exception as error:
                    self.found.failed.append(f"text: {type(error).__name__}: {error}")
                    continue
                self.found.answered["texts"] += 1
                if not tokens or tokens != sorted(tokens):
                    self.found.wrong.append(f"text of {history}: tokens came as {tokens}")

    def _shop(self, rng: np.random.Generator) -> None:
        """Items come, are sold out, come back, and go for good."""
        store, lists = CatalogStore.open(self._store), self._scratch / "changes"
        lists.mkdir(parents=True, exist_ok=True)
        fresh: deque[list[str]] = deque()
        sold_out: list[str] = []
        number = 0
        while not self._ends.wait(self._change_s):
            number += 1
            new = self._fresh_items(rng, number)
            back, sold_out = sold_out, rng.choice(self._ids, 20, replace=False).tolist()
            forgotten = fresh.popleft() if len(fresh) >= 20 else []
            files: dict[str, Any] = {
                ADD: [json.dumps(item) for item in new],
                "remove": forgotten,
                "available": [item_id for item_id in back if item_id not in sold_out],
                "unavailable": [item_id for item_id in sold_out if item_id not in back],
            }
            paths = {}
            for name, lines in files.items():
                if lines:
                    paths[name] = lists / (f"{name}.jsonl" if name == ADD else f"{name}.txt")
                    paths[name].write_text("\n".join(lines) + "\n")
            for item_id in files["available"]:
                self._gone.pop(item_id, None)
            self._items |= {item["item_id"]: Item(item["category"], item["brand"], item["price"]) for item in new}
            apply_files(store, paths, message=f"change {number}")
            self._gone |= dict.fromkeys([*forgotten, *files["unavailable"]], time.monotonic())
            fresh.append([item["item_id"] for item in new])
            if number % _COMPACT_EVERY == 0:
                store.compact(_KEPT_VERSIONS)
            self.found.answered["changes of the catalogue"] += 1

    def _fresh_items(self, rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
        alike = rng.choice(len(self._ids), 30, replace=False)
        return [
            {
                "item_id": f"fresh-{number}-{place}",
                "sid": self._bundle.catalog.sids[row].tolist(),
                "popularity": 1,
                **{name: getattr(self._items[self._ids[row]], name) for name in ("category", "brand", "price")},
            }
            for place, row in enumerate(alike)
        ]
