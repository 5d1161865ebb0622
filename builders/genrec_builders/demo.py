"""The demo: from data to ten recommendations through a real server, with the time spent in each step."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

from genrec.bundle import PREFIXES_FORMAT, Bundle
from genrec.evaluation.metrics import metrics
from genrec.evaluation.ranker import Ranker, rank_served
from genrec.live.changes import Changes
from genrec.live.init import init_catalog
from genrec.live.store import CatalogStore
from genrec.pipeline import Pipeline
from genrec.reporting.kept import require_same
from genrec.reporting.progress import track
from genrec.serving.serve import LiveCatalog, serve_bundle
from genrec.serving.statistics import read_step_counts
from genrec.serving.triton import find_triton
from genrec_builders.build import build_bundle, is_built, read_attributes
from genrec_builders.config import BuildConfig, TrainingConfig
from genrec_builders.data import Dataset, read_dataset, sample_users, split_leave_one_out, write_dataset
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.data.table_form import read_made_of
from genrec_builders.fingerprint import shop_fingerprint
from genrec_builders.preflight import require_places

# Large batches without dropout: less good after a long training than the default, and fast for three epochs.
QUICK = TrainingConfig(epochs=3, learning_rate=2e-3, tokens_per_batch=8192, dropout=0.0)
SHOP_BUILD = BuildConfig(training=QUICK, evaluate_users=2000)
DATA_BUILD = BuildConfig(training=TrainingConfig(epochs=6))
SHOP = (5000, 12000, 0)  # items, users, seed
TIMED_REQUESTS = 50
SERVED_USERS = 500
NEW_ITEM, LATEST_S = "new-item", 30.0


def run_demo(data: Path | None, work: Path, console: Console, epochs: int | None = None) -> None:
    """Build what is missing under `work`, serve it, and print one user's recommendations and the quality.

    data: a dataset folder, or None for the demo shop. epochs: of training, if not the default.
    """
    find_triton()  # before a training, not after it
    config = SHOP_BUILD if data is None else DATA_BUILD
    if epochs is not None:
        config = replace(config, training=replace(config.training, epochs=epochs))
    if data is None:
        data = work / "shop"
        _make_shop(data, console)
    path = work / f"{data.resolve().name}-bundle"
    if not is_there(path):
        require_places(path, [data])
    dataset = read_dataset(data)
    bundle = _built(dataset, path, config, console)
    with tempfile.TemporaryDirectory(prefix="genrec-demo-") as scratch:
        store = Path(scratch) / "catalog"
        live = None
        if bundle.manifest.format_version > PREFIXES_FORMAT:
            init_catalog(bundle, str(store))
            live = LiveCatalog(str(store), Path(scratch) / "published")
        else:
            console.print(f"{path}: its format cannot follow a live catalogue; remove it to build anew", soft_wrap=True)
        console.print("start Triton")
        with serve_bundle(path, catalog=live, log_path=work / "triton.log") as server:
            _show_user(bundle, dataset, server.grpc_url, console)
            _show_quality(bundle, dataset, server.grpc_url, console)
            if live is not None:
                _show_change(bundle, dataset, server.grpc_url, CatalogStore.open(str(store)), console)


def _make_shop(path: Path, console: Console) -> None:
    """Write the demo shop to `path`, or see that it is there. Raises ValueError if another one is."""
    made_of = shop_fingerprint(*SHOP)
    if not is_there(path):
        with track("demo shop"):
            write_dataset(make_demo_shop(*SHOP), path, made_of)
    elif (kept := read_made_of(path)) is None:
        console.print(f"{path}: it is not noted what made this data; it is used as it is", soft_wrap=True)
    else:
        require_same(path, kept, made_of, f"remove {path} to make it anew, or name another folder with --work")


def _built(dataset: Dataset, path: Path, config: BuildConfig, console: Console) -> Bundle:
    """The bundle at `path`, built if there is none. Raises ValueError if it is of other data or settings."""
    if not is_built(dataset, path, config, lambda text: console.print(text, soft_wrap=True)):
        build_bundle(dataset, path, config, track)
    return Bundle(path)


def _shown(lengths: np.ndarray) -> int:
    """The first user with 8 to 12 items, or whose number of items comes closest."""
    return int(np.argmin(np.maximum(np.abs(lengths - 10) - 2, 0)))


def is_there(folder: Path) -> bool:
    """Whether there is anything in `folder`, or in its place."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _show_user(bundle: Bundle, dataset: Dataset, url: str, console: Console) -> None:
    from genrec_client import Recommender, Source

    attributes = read_attributes(bundle.path)
    test = split_leave_one_out(dataset.interactions).test
    lengths = np.diff(test.histories.offsets)
    user = _shown(lengths)
    ids = [bundle.catalog.item_ids[row].decode() for row in test.histories[user]]
    bought_next = bundle.catalog.item_ids[test.targets[user]].decode()

    def cells(item_id: str) -> list[str]:
        row = int(bundle.catalog.rows_of(np.array([item_id.encode()], object))[0])
        return [item_id, "-".join(map(str, bundle.catalog.sids[row])), attributes.get(item_id, {}).get("title", "")]

    def table(title: str, *more: str) -> Table:
        names = ["", "item", "semantic ID", "title" if attributes else ""]
        widths = {"": 3, "item": 8, "semantic ID": 11, "score": 7}  # the title gives way on a narrow terminal
        columns = [Column(name, no_wrap=True, min_width=widths.get(name)) for name in (*names, *more)]
        return Table(*columns, title=title, title_justify="left", box=box.SIMPLE)

    history = table(f"history of user {dataset.interactions.user_ids[test.histories.users[user]]}, oldest first")
    for place, item_id in enumerate(ids, 1):
        history.add_row(str(place), *cells(item_id))
    console.print(history)
    with Recommender(url, timeout_s=10.0) as client:
        answer = client.recommend(ids)
        before = read_step_counts(url)
        started = time.perf_counter()
        for _ in range(TIMED_REQUESTS):
            answer = client.recommend(ids)
        total = 1e3 * (time.perf_counter() - started) / TIMED_REQUESTS
    steps = {name: counts.since(before[name]) for name, counts in read_step_counts(url).items()}
    ranked = table("recommended by the server (* is what the user bought next)", "score")
    for place, item in enumerate(answer.items, 1):
        mark = "*" if item.item_id == bought_next else ""
        score = f"{item.score:.3f}" if item.source is Source.DRAFTED else "popular"
        ranked.add_row(f"{place}{mark}", *cells(item.item_id), score)
    console.print(ranked)
    spent = ", ".join(f"{name} {counts.mean_ms('total'):.2f}" for name, counts in steps.items())
    console.print(
        f"{answer.valid} of {answer.drafted} drafts are items; mean of {TIMED_REQUESTS} requests in ms: {spent}, "
        f"seen by the client {total:.2f}",
        soft_wrap=True,
    )


def _show_change(bundle: Bundle, dataset: Dataset, url: str, store: CatalogStore, console: Console) -> None:
    """Add an item while the server runs, and wait until it is recommended."""
    from genrec_client import Recommender

    test = split_leave_one_out(dataset.interactions).test
    user = _shown(np.diff(test.histories.offsets))
    ids = [bundle.catalog.item_ids[row].decode() for row in test.histories[user]]
    with Recommender(url, timeout_s=10.0) as client:
        best = client.recommend(ids, top_k=1).item_ids[0]
        row = bundle.catalog.rows_of(np.array([best.encode()], object))
        changes = Changes(
            item_ids=np.array([NEW_ITEM.encode()]),
            removed=np.zeros(1, bool),
            codes=bundle.space.encode(bundle.catalog.sids[row]),  # as the quantiser would say of the like
            popularity=bundle.catalog.popularity[row] + 1,
            available=np.ones(1, np.int8),
        )
        version = store.commit(changes, store.latest(), "the demo's new item")
        committed = time.monotonic()
        while NEW_ITEM not in (answer := client.recommend(ids)).item_ids:
            if time.monotonic() - committed > LATEST_S:
                raise RuntimeError(f"{NEW_ITEM} is not recommended {LATEST_S:g} s after it was added")
        place = answer.item_ids.index(NEW_ITEM) + 1
        console.print(
            f"live catalogue: {NEW_ITEM}, alike {best}, was added while the server ran (version {version}), and was "
            f"recommended at place {place} after {1e3 * (time.monotonic() - committed):.0f} ms",
            soft_wrap=True,
        )


def _show_quality(bundle: Bundle, dataset: Dataset, url: str, console: Console) -> None:
    quality = bundle.manifest.training["quality"]
    table = Table(
        "", "Hit@10", "NDCG@10", title=f"test split, {quality['users']} users, {bundle.manifest.bundle_version}"
    )
    for name, title in (
        ("history_allowed", "model, whole catalogue ranked"),
        ("history_excluded", "model, history excluded as served"),
        ("popularity", "most popular items"),
    ):
        table.add_row(title, f"{quality[name]['hit@10']:.4f}", f"{quality[name]['ndcg@10']:.4f}")
    console.print(table)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, SERVED_USERS)
    served = rank_served(url, bundle.catalog, histories)
    offline = Ranker(Pipeline.open(bundle)).rank(histories).rows
    found = {name: metrics(rows, targets) for name, rows in (("served", served), ("offline", offline))}
    texts = [f"{name} Hit@10 {m['hit@10']:.4f} NDCG@10 {m['ndcg@10']:.4f}" for name, m in found.items()]
    same = (served == offline).all(1).mean()
    console.print(
        f"{len(histories)} users through the server: {', '.join(texts)}; same ten items for {same:.1%}", soft_wrap=True
    )
