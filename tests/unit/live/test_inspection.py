"""`genrec catalog inspect` and the follower's drift: figures against plain Python, and warnings where they belong."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.bundle import CATALOG, QUANTIZER, Bundle
from genrec.catalog import Catalog, Columns, Fit, ResidualQuantizer
from genrec.errors import CatalogStoreError
from genrec.live import follower
from genrec.live.changes import Changes
from genrec.live.follower import Follower
from genrec.live.init import init_catalog
from genrec.live.inspection import Unknown, inspect_catalog
from genrec.live.plots import inspection_figure
from genrec.live.status import Status
from genrec.live.store import CatalogStore
from genrec.rules import bind, parse
from tests.unit.bundle.conftest import LEVELS, write_hollow
from tests.unit.live.test_histories import ROWS, committed, is_valid
from tests.unit.live.world import KINDS, NONE, SPACE, State, data_files, new_store, write_raw
from tests.unit.live.world import QUANTIZER as SMALL

Run = Callable[..., tuple[int, str]]
ADDED = 250
FITTED = ResidualQuantizer(SMALL.codebooks, Fit(0.5, 2.0))
FIRST: State = {"i0": (1, 5, True, NONE), "i1": (2, 0, False, NONE), "i2": (1, 3, True, NONE)}


def rank(sizes: list[int], share: float) -> int:
    """The smallest size that at least `share` of the sizes do not exceed."""
    return sorted(sizes)[max(0, ceil(share * len(sizes)) - 1)] if sizes else 0


@settings(max_examples=40)
@given(st.lists(ROWS | st.just("compact"), max_size=6), st.integers(1, 3), st.booleans())
def test_figures_are_those_of_plain_python(
    tmp_path_factory: Any, history: list[Any], top_k: int, has_bundle: bool
) -> None:
    location = tmp_path_factory.mktemp("store") / "catalogue"
    store, states, embeddings = new_store(location, FIRST, kinds=KINDS), [FIRST], [set[str]()]
    refused, base = [], 0
    for rows in history:
        before = states[-1]
        if rows == "compact":
            if store.compact() > len(states) - 1:
                base, states, embeddings = len(states), [*states, before], [*embeddings, embeddings[-1]]
            continue
        version, valid = write_raw(location, rows), is_valid(rows, before)
        refused += [] if valid else [version]
        states.append(committed(before, rows))
        came = {row["item_id"] for row in rows if valid and row.get("embedding") is not None}
        embeddings.append((embeddings[-1] | came) & states[-1].keys())
    store = CatalogStore.open(str(location), FITTED)
    trained = Catalog.build(["i0", "i1", "i2"], SPACE.decode(np.array([1, 2, 1])), np.zeros(3)) if has_bundle else None
    found = inspect_catalog(store, store.latest(), trained, top_k)

    state = states[-1]
    live = {name: code for name, (code, _, there, _) in state.items() if there}
    buckets = Counter(live.values())
    assert (found.version, found.live, found.unavailable) == (len(states) - 1, len(live), len(state) - len(live))
    assert found.base == base and found.commits == len(states) - 1 - base
    assert [version for version, _ in found.refused] == [version for version in refused if version > base]
    assert found.unreachable == sum(max(0, size - top_k) for size in buckets.values())
    assert found.reachable_share == pytest.approx(1 - found.unreachable / len(live) if live else 1)
    shared = sum(size for size in buckets.values() if size > 1)
    assert found.shared_share == pytest.approx(shared / len(live) if live else 0)
    for depth, sizes in enumerate(found.prefixes, 1):
        counts = [*Counter(tuple(SPACE.decode(np.array(code))[:depth].tolist()) for code in live.values()).values()]
        expected = {"p50": rank(counts, 0.5), "p99": rank(counts, 0.99), "largest": max(counts, default=0)}
        possible = int(np.prod(SPACE.levels[:depth]))
        assert sizes.summary() == {"in_use": len(counts), "possible": possible, **expected}
    figures = json.loads(json.dumps(found.figures()))
    assert figures["drift"]["stability"] is None and not figures["warnings"]  # too few
    if not has_bundle:
        assert figures["drift"]["added"] is None and "--bundle" in figures["unknown"]["added"]
        return
    added = [name for name, code in live.items() if {"i0": 1, "i1": 2, "i2": 1}.get(name) != code]
    assert figures["drift"]["added"] == len(added) and figures["drift"]["trained_error"] == 0.25
    assert "items were added" in figures["unknown"]["stability"]
    with_embedding = sum(name in embeddings[-1] for name in added)
    assert f"{with_embedding} of {len(added)} added items came" in figures["unknown"]["error"]


def test_the_error_is_that_of_the_added_items(tmp_path: Path) -> None:
    new_store(tmp_path / "c", FIRST)
    vectors = np.random.default_rng(0).normal(size=(120, 2)).astype(np.float32)
    rows = [
        {"item_id": f"n{number}", "operation": "upsert", "embedding": vector, "available": number < 110}
        for number, vector in enumerate(vectors.tolist())
    ]
    rows[0] |= {"sid": [0, 0, 0]}  # a wrong one, which counts as it is served
    write_raw(tmp_path / "c", rows)
    store = CatalogStore.open(str(tmp_path / "c"), FITTED)
    trained = Catalog.build(["n1", "n2"], FITTED.encode(vectors[1:3]), np.zeros(2))
    sids = FITTED.encode(vectors)
    sids[0] = 0
    squared = np.square(vectors - FITTED.decode(sids)).sum(1)
    for compacted in (False, True):
        found = inspect_catalog(store, store.latest(), trained)
        assert found.drift.added == 108 + 2  # and i0, i2
        expected = np.delete(squared[:110], [1, 2]).mean()
        assert found.drift.error == pytest.approx(expected / 2.0)
        assert found.drift.error_ratio == pytest.approx(expected / 0.5)
        if not compacted:
            read = store.read_commits(0, store.version)
            assert (read.embeddings, read.squared_error) == (120, pytest.approx(squared.sum()))
            store.compact()


def test_what_is_not_known_says_why(tmp_path: Path) -> None:
    new_store(tmp_path / "c", FIRST)
    store, trained = CatalogStore.open(str(tmp_path / "c"), SMALL), Catalog.build(["x"], np.zeros((1, 3)), np.zeros(1))

    def error_of(quantizer: ResidualQuantizer | None) -> str:
        store.quantizer = quantizer
        ratio = inspect_catalog(store, 0, trained).drift.error_ratio
        assert isinstance(ratio, Unknown)
        return ratio.why

    assert error_of(None) == "the bundle has no quantiser: its semantic IDs were given, or are of behaviour"
    assert error_of(SMALL) == "the bundle is of before it was noted; build it again"
    assert "exactly" in error_of(ResidualQuantizer(SMALL.codebooks, Fit(0.0, 1.0)))
    assert error_of(FITTED).startswith("0 of 2 added items came with an embedding, at least 100")
    with pytest.raises(CatalogStoreError, match="has no version 3; the newest is 0"):
        inspect_catalog(store, 3)
    version = write_raw(tmp_path / "c", [{"item_id": "n", "operation": "upsert", "sid": [0, 0, 0]}])
    data_files(tmp_path / "c", version)[0].unlink()
    with pytest.raises(CatalogStoreError, match="version 1 cannot be read"):
        inspect_catalog(store, version)
    assert inspect_catalog(store, 0).live == 2  # the one before can


# --- a shop: through the command, the picture, and a server's follower ---


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, np.ndarray]:
    """A bundle of most of a shop's items, and the embeddings of the others. Read-only."""
    from genrec_builders.data.demo_shop import make_demo_shop
    from genrec_builders.semantic_ids import fit_residual_kmeans, measure_fit

    bundle = write_hollow(tmp_path_factory.mktemp("shop") / "bundle")
    embeddings = make_demo_shop(n_items=1500, n_users=50, seed=0).items.embeddings
    assert embeddings is not None
    order = np.random.default_rng(0).permutation(len(embeddings))
    old, new = embeddings[order[ADDED:]], embeddings[order[:ADDED]]
    fitted = fit_residual_kmeans(old, LEVELS)
    ResidualQuantizer(fitted.codebooks, measure_fit(fitted, old)).save(bundle.path / QUANTIZER)
    Catalog.build([f"old-{row}" for row in range(len(old))], fitted.encode(old), np.zeros(len(old))).save(
        bundle.path / CATALOG
    )
    return Bundle(bundle.path), new


def like_before(new: np.ndarray) -> np.ndarray:
    return new


def of_another_kind(new: np.ndarray) -> np.ndarray:
    """A third of them far from everything, close to each other."""
    rng, changed = np.random.default_rng(1), new.copy()
    third = len(new) // 3
    changed[:third] = rng.normal(size=64) / 8 + rng.normal(size=(third, 64)) / 20
    return changed


def items_of(path: Path, embeddings: np.ndarray) -> Path:
    ids = [f"new-{row}" for row in range(len(embeddings))]
    pq.write_table(pa.table({"item_id": ids, "embedding": embeddings.tolist()}), path)
    return path


@pytest.mark.parametrize(("make", "drifted"), [(like_before, False), (of_another_kind, True)])
def test_the_command_warns_of_drift_alone(
    shop: tuple[Bundle, np.ndarray], make: Any, drifted: bool, tmp_path: Path, run_genrec: Run, capsys: Any
) -> None:
    bundle, new = shop
    location, add = tmp_path / "catalogue", items_of(tmp_path / "new.parquet", make(new))
    assert run_genrec("catalog", "init", bundle.path, location)[0] == 0
    assert run_genrec("catalog", "apply", location, "--add", add, "--bundle", bundle.path)[0] == 0
    write_raw(location, [{"item_id": "", "operation": "upsert", "sid": [0, 0, 0]}])

    def said(*options: object) -> str:
        from genrec.cli.main import main

        capsys.readouterr()
        assert main([str(word) for word in ("catalog", "inspect", location, *options)]) == 0
        return capsys.readouterr().out

    text = said("--bundle", bundle.path, "--plot", tmp_path / "out.svg")
    assert ("stability index" in text.partition("warning:")[2]) is drifted
    assert ("times worse than the trained ones" in text) is drifted
    assert "not known" not in text
    assert f"{1250 + ADDED:,}" in text and "refused: version 2 counts as empty: item '' has 0 bytes" in text
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")
    found = json.loads(said("--bundle", bundle.path, "--json"))
    assert found["top_k"] == bundle.manifest.limits.top_k and found["drift"]["added"] == ADDED
    assert bool(found["warnings"]) is drifted and not found["unknown"]
    assert (found["commits"], [one["version"] for one in found["refused"]]) == (2, [2])
    before = said("--bundle", bundle.path, "--version", 0)
    assert "0 items were added; from 100 on" in before and "warning" not in before
    assert "give --bundle" in said()


def test_a_bundle_of_before_the_error_was_noted(
    shop: tuple[Bundle, np.ndarray], tmp_path: Path, run_genrec: Run, capsys: Any
) -> None:
    old = tmp_path / "bundle"
    shutil.copytree(shop[0].path, old)
    note = old / QUANTIZER / "quantizer.json"
    note.write_text(json.dumps({key: value for key, value in json.loads(note.read_text()).items() if key != "fit"}))
    assert Bundle(old).quantizer.fit is None
    assert run_genrec("catalog", "init", old, tmp_path / "c")[0] == 0
    add = items_of(tmp_path / "new.parquet", of_another_kind(shop[1]))
    assert run_genrec("catalog", "apply", tmp_path / "c", "--add", add, "--bundle", old)[0] == 0
    from genrec.cli.main import main

    assert main(["catalog", "inspect", str(tmp_path / "c"), "--bundle", str(old)]) == 0
    text = capsys.readouterr().out
    assert "not known: error ratio: the bundle is of before it was noted; build it again" in text
    assert "warning: the added items lie on other codes" in text and "times worse" not in text


def test_what_the_command_refuses(shop: tuple[Bundle, np.ndarray], tmp_path: Path, run_genrec: Run) -> None:
    new_store(tmp_path / "c", FIRST)  # of other levels
    status, stderr = run_genrec("catalog", "inspect", tmp_path / "c", "--bundle", shop[0].path)
    assert status == 1 and "levels" in stderr and stderr.count("\n") == 1
    for plot in (tmp_path / "out.png", tmp_path / "no-folder" / "out.svg"):
        status, stderr = run_genrec("catalog", "inspect", tmp_path / "c", "--plot", plot)
        assert status == 1 and f"--plot {plot}: name a file that ends in .svg" in stderr


def test_pictures_of_anything(shop: tuple[Bundle, np.ndarray], tmp_path: Path) -> None:
    bundle = shop[0]
    init_catalog(bundle, str(tmp_path / "c"))
    whole = CatalogStore.open(str(tmp_path / "c"), bundle.quantizer)
    empty = new_store(tmp_path / "empty", {})
    for found in (inspect_catalog(empty, 0), inspect_catalog(whole, 0, bundle.catalog, 1)):
        figure = inspection_figure(found)
        figure.savefig(tmp_path / "out.png")
        assert len(figure.axes) == 3


@pytest.mark.parametrize(("make", "drifted"), [(like_before, False), (of_another_kind, True)])
def test_a_follower_keeps_the_figures_up(
    shop: tuple[Bundle, np.ndarray], make: Any, drifted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "DRIFT_EVERY_S", 0.0)
    monkeypatch.setattr(follower, "_DRIFT_REST", 0.0)
    bundle, new = shop
    location, root, log = tmp_path / "c", tmp_path / "published", list[str]()
    init_catalog(bundle, str(location))
    store = CatalogStore.open(str(location), bundle.quantizer)
    running = Follower(store, root, 50, 1.0, log.append, bundle.path)
    running.look()
    rows = zip(range(len(new)), make(new).tolist(), strict=True)
    write_raw(location, [{"item_id": f"n{n}", "operation": "upsert", "embedding": vector} for n, vector in rows])
    running.look()
    status = Status.load(root)
    assert status.error_ratio is not None and (status.error_ratio > 1.5) is drifted
    deadline = time.monotonic() + 60
    while Status.load(root).drift is None and time.monotonic() < deadline:
        time.sleep(0.05)
        running.look()
    drift = Status.load(root).drift
    assert drift is not None and (drift > 0.25) is drifted and not log
    whole = inspect_catalog(store, store.latest(), bundle.catalog).drift
    assert isinstance(whole.stability, tuple) and drift == pytest.approx(max(whole.stability))
    assert whole.error_ratio == pytest.approx(status.error_ratio)


def test_a_measurement_that_fails_is_told_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "DRIFT_EVERY_S", 0.0)
    store, log = new_store(tmp_path / "c", FIRST), list[str]()
    running = Follower(store, tmp_path / "published", 50, 1.0, log.append, tmp_path / "no-bundle")
    deadline = time.monotonic() + 60
    while not log and time.monotonic() < deadline:
        running.look()
        time.sleep(0.05)
    assert log == ["catalogue: its drift could not be measured (status 1)"]
    status = Status.load(tmp_path / "published")
    assert (status.problem, status.drift) == ("", None)
    running.look()
    assert running._drift.process is None  # not again until something changes


def test_what_a_rule_leaves(tmp_path: Path) -> None:
    columns = Columns.of_values({"price": "number"}, {"price": [1.0, 2.0, 3.0, None, 1.0]})
    codes = np.array([1, 1, 2, 3, 4])
    first = Changes(
        np.array([b"a", b"b", b"c", b"d", b"e"]),
        np.zeros(5, bool),
        codes,
        np.zeros(5, np.int64),
        np.array([1, 1, 1, 1, 0], np.int8),
        columns,
        np.ones(5, bool),
    )
    CatalogStore.create(str(tmp_path / "store"), SPACE, [first], kinds={"price": "number"})
    store = CatalogStore.open(str(tmp_path / "store"))
    rule = bind(parse('{"where": {"attribute": "price", "<": 3}}'), store.kinds).filter
    found = inspect_catalog(store, 0, None, 1, rule, 64).rule
    assert found is not None
    assert (found.items, found.semantic_ids, found.reachable, found.share) == (2, 1, 1, 0.5)
    assert not found.narrowed and found.drafts == 32  # half of the items: drafts are only checked
    narrower = bind(parse('{"where": {"attribute": "price", "is": 2}}'), store.kinds).filter
    found = inspect_catalog(store, 0, None, 1, narrower, 64).rule
    assert found is not None and found.narrowed and found.drafts == 1
