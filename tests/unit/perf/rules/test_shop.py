"""The grown shop, and the measurements of rules that need no server, at their smallest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.catalog import CatalogVersion
from genrec.live.changes import KEEPS
from genrec.rules import bind, parse
from genrec.rules.scan import allowed_rows
from genrec_builders.data import Dataset, write_dataset
from perf.rules import crossing, new_rule, quality
from perf.rules.changing import changes_of
from perf.rules.shop import Shop, Windows

ITEMS = 3000


@pytest.fixture(scope="module")
def shop(bundle: Bundle, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("rules")
    write_dataset(dataset, folder / "shop")
    return Shop(bundle, folder / "shop", folder, ITEMS)


def left(version: CatalogVersion, where: dict[str, object]) -> np.ndarray:
    return allowed_rows(version, [bind(parse(json.dumps({"where": where})), version.kinds).filter])


def test_rules_leave_about_the_share_that_is_asked_for_and_the_item(shop: Shop) -> None:
    version, windows = shop.version, Windows(shop)
    assert len(version) == ITEMS
    ids = shop.bundle.catalog.item_ids.astype(object)
    for item in (0, 17):
        for share in (0.01, 0.1, 0.6):
            for where in (windows.unrelated(item, share), windows.related(item, share)):
                rows = left(version, where)
                assert 0.5 * share < rows.size / ITEMS < 1.6 * share + 0.002
                assert version.rows_of(ids[[item]])[0] in rows


def test_every_measurement_says_what_it_found(shop: Shop) -> None:
    arguments = shop.bundle.path, shop.data, shop.folder
    new_rule.main(*arguments, items=ITEMS, allowed="100,1000", rounds=2)
    found = json.loads((shop.folder / new_rule.RESULTS).read_text())[str(ITEMS)]
    assert found["runs"]["100 items"]["allowed"] == 100 and found["runs"]["price"]["scan"]["p50"] > 0
    crossing.main(*arguments, items=ITEMS, users=3, shares="0.01,0.5", most=100, plot=shop.folder)
    runs = json.loads((shop.folder / crossing.RESULTS).read_text())[str(ITEMS)]["runs"]
    assert {(one["kind"], one["share"], one["way"]) for one in runs} == {
        (kind, share, way) for kind in crossing.KINDS for share in (0.01, 0.5) for way in crossing.WAYS
    }
    assert (shop.folder / "rules-crossing.svg").exists()
    quality.main(*arguments, items=ITEMS, users=4)
    ruled = json.loads((shop.folder / quality.RESULTS).read_text())[str(ITEMS)]["runs"]
    assert ruled["category"]["exhaustive, same"] == 1.0


def test_changes_say_attributes_alone(shop: Shop) -> None:
    base = shop.version.base
    changes = changes_of(3, base, 50)
    assert (changes.codes == KEEPS).all() and changes.described.all() and 0 < len(changes) <= 50
    assert changes.columns["price"].values.max() <= 40
