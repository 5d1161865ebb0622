"""The demo shop grown to millions of items, its users, and rules that leave a given share of it.

genrec demo-shop build/rules/shop
genrec build build/rules/shop build/rules/bundle --levels 128,128,128,128 --epochs 3 --tokens-per-batch 8192
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

from genrec.bundle import ONNX_GRAPH, Bundle
from genrec.catalog import CatalogBase, CatalogVersion, Column, Columns, PrefixTable
from genrec.catalog.kinds import NUMBER, TIMESTAMP
from genrec.engines.base import Engine
from genrec.engines.onnx import OnnxEngine
from genrec.live.changes import Changes
from genrec.pipeline import Pipeline
from genrec.prompt import Request
from genrec.rules.narrowing import Narrowing
from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

NOISE = 0.06  # of each of an embedding's 64 numbers; most copies then have a semantic ID of their own
PART = 1 << 18
RULE_BYTES = 256 << 20
_DAY_US = 86_400_000_000
BundlePath = Annotated[Path, typer.Argument(help="A bundle of the demo shop, with a quantiser.")]
Data = Annotated[Path, typer.Argument(help="The demo shop's dataset folder.")]
Out = Annotated[Path, typer.Argument(help="Folder of grown catalogues and results.")]
Items = Annotated[int, typer.Option(min=300, help="Items that the shop is grown to.")]


@dataclass(frozen=True)
class User:
    """history: object [n] of bytes, item ids. target: the item that the user took next, a row of the bundle."""

    history: np.ndarray
    target: int


@dataclass
class Shop:
    """A grown shop. folder: where its catalogue is kept. users: of the test split."""

    bundle: Bundle
    data: Path
    folder: Path
    items: int

    @cached_property
    def version(self) -> CatalogVersion:
        """The catalogue, made when it is first asked for."""
        space, folder = self.bundle.space, self.folder / f"grown-{self.items}"
        if not (folder / "codes.npy").exists():
            whole = Changes.concatenate(list(self.parts()))
            base = CatalogBase.build(
                space, whole.item_ids, whole.codes, whole.popularity, whole.available == 1, whole.columns
            )
            PrefixTable.build(space, np.unique(whole.codes)).save(folder / "masks")
            base.save(folder)
        return CatalogVersion(0, CatalogBase.load(folder, space))

    @cached_property
    def masks(self) -> PrefixTable:
        """The catalogue's valid prefixes."""
        assert self.version
        return PrefixTable.load(self.folder / f"grown-{self.items}" / "masks", self.bundle.space)

    def parts(self) -> Iterator[Changes]:
        """The bundle's items, then noisy copies of them up to `items`; each part has at most PART."""
        catalog, rng = self.bundle.catalog, np.random.default_rng(7)
        quantizer, embeddings = self.bundle.quantizer, read_dataset(self.data).items.embeddings
        assert quantizer is not None and embeddings is not None
        own, every = len(catalog), np.ones
        codes = self.bundle.space.encode(catalog.sids)
        sold, there = catalog.popularity, every(own, np.int8)
        yield Changes(catalog.item_ids, ~every(own, bool), codes, sold, there, catalog.columns, every(own, bool))
        for start in range(own, self.items, PART):
            size = min(PART, self.items - start)
            source = rng.integers(0, own, size)
            noisy = embeddings[source] + NOISE * rng.standard_normal((size, embeddings.shape[1]), np.float32)
            noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
            ids = np.char.add(b"grown-", np.arange(start, start + size).astype("S8"))
            columns = noisy_columns(catalog.columns.take(source), rng)
            codes = self.bundle.space.encode(quantizer.encode(noisy))
            sold, there = rng.choice(catalog.popularity, size), every(size, np.int8)
            yield Changes(ids, ~every(size, bool), codes, sold, there, columns, every(size, bool))

    def users(self, count: int) -> list[User]:
        """Some of the test split, of which the model has not seen the last item."""
        ids = self.bundle.catalog.item_ids.astype(object)
        histories, targets = sample_users(split_leave_one_out(read_dataset(self.data).interactions).test, count)
        return [User(ids[rows], int(target)) for rows, target in zip(histories, targets.tolist(), strict=True)]

    def pipeline(self, engine: Engine | None = None, narrowing: Narrowing | None = None) -> Pipeline:
        """In process, over the grown catalogue; by default one thread of ONNX Runtime, narrowed as a server does."""
        engine = self.engine() if engine is None else engine
        version = cast(Any, self.version)
        found = Pipeline(version, version, self.bundle.layout, engine)
        if narrowing is not None:
            found.narrowing = narrowing
        return found

    def engine(self) -> OnnxEngine:
        """One thread of ONNX Runtime."""
        width = self.bundle.space.beams(self.bundle.manifest.beam_width)
        return OnnxEngine(self.bundle.path / ONNX_GRAPH, self.masks, width, threads=1, rule_bytes=RULE_BYTES)


class Windows:
    """Conditions that leave a share of the items, around an item that they leave."""

    def __init__(self, shop: Shop) -> None:
        columns = shop.version.base.columns
        self._released = np.sort(columns["released"].values)
        self._category = columns["category"]
        self._counts = np.bincount(self._category.values, minlength=len(self._category.words) + 1)
        own = shop.bundle.catalog.columns
        self._own_released = own["released"].values
        texts = own["category"]
        self._own_category = [texts.words[code - 1].decode() for code in texts.values.tolist()]

    def unrelated(self, item: int, share: float) -> dict[str, Any]:
        """By the time of release, which says nothing of what users like. item: a row of the bundle."""
        return self._window(item, share)

    def related(self, item: int, share: float) -> dict[str, Any]:
        """By the item's category; more of them for a larger share, a part of it for a smaller one."""
        own, others = self._categories(item)
        return self._of_categories(item, share, np.concatenate([[own], others]))

    def unlike(self, item: int, share: float) -> dict[str, Any]:
        """By other categories than the item's, which it does not leave."""
        return self._of_categories(item, share, self._categories(item)[1])

    def _categories(self, item: int) -> tuple[int, np.ndarray]:
        """The code of the item's category, and those of all others in random order: int64."""
        order = np.random.default_rng(item).permutation(len(self._category.words)) + 1
        own = int(self._category.codes_of([self._own_category[item].encode()])[0])
        return own, order[order != own]

    def _of_categories(self, item: int, share: float, order: np.ndarray) -> dict[str, Any]:
        shares = self._counts[order].cumsum() / self._released.size
        count = min(1 + int(np.searchsorted(shares, share)), order.size)
        names = [self._category.words[code - 1].decode() for code in order[:count].tolist()]
        among = {"attribute": "category", "in": names}
        if shares[count - 1] <= 1.1 * share:
            return among
        return {"all": [among, self._window(item, share / float(shares[count - 1]))]}

    def _window(self, item: int, share: float) -> dict[str, Any]:
        wide = max(1, round(share * self._released.size))
        place = int(np.searchsorted(self._released, self._own_released[item]))
        begin = min(max(0, place - wide // 2), self._released.size - wide)
        ends = self._released[[begin, begin + wide - 1]].astype("datetime64[us]").astype(str).tolist()
        return {"attribute": "released", ">=": ends[0] + "Z", "<=": ends[1] + "Z"}


def noisy_columns(columns: Columns, rng: np.random.Generator) -> Columns:
    """Other prices, and times of release that have nothing to do with those before."""
    count = columns.count
    price = np.round(columns["price"].values * np.exp(rng.normal(0.0, 0.2, count)), 2)
    released = (17_897 + rng.integers(0, 2_557, count)) * _DAY_US + rng.integers(0, _DAY_US, count)
    drawn = {"price": Column(NUMBER, price), "released": Column(TIMESTAMP, released)}
    return Columns({**columns, **drawn}, count)


def request(user: User, where: dict[str, Any] | None, top_k: int = 10) -> Request:
    """The request of a user; where: a condition, None for no rules."""
    rules = b"" if where is None else json.dumps({"where": where}).encode()
    return Request(user.history, np.empty(0, object), top_k, rules=rules)


def quantiles(spent: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99."""
    return {f"p{at}": float(np.percentile(spent, at)) for at in (50, 95, 99)}
