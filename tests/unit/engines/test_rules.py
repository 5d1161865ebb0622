"""Rules in every engine: each request's own, together in a batch, and no rules where the graph is from before them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from genrec.bundle import CHECKPOINT, ONNX_GRAPH, Bundle, seal_bundle
from genrec.catalog import RuleMasks
from genrec.engines import open_engine
from genrec.engines.base import Drafts, Engine
from genrec.engines.buckets import Buckets
from genrec.engines.graphs import call_again
from genrec.engines.onnx import OnnxEngine
from genrec.engines.openvino import runs_here
from genrec.engines.torch import TorchEngine
from genrec.golden import check_drafts
from genrec.model import draft_head
from genrec.model.checkpoint import load_checkpoint
from genrec_builders.export.onnx import export_onnx
from perf.speed.rules import Unruled
from tests.near import assert_same_drafts
from tests.needs import OPENVINO

Request = tuple[np.ndarray, np.ndarray | None]  # a prompt, and the codes that its rule allows
SHARES = (0.02, 0.3, 0.9)


def requests_of(bundle: Bundle, rng: np.random.Generator, count: int) -> list[Request]:
    codes = np.unique(bundle.space.encode(bundle.catalog.sids[bundle.catalog.popular_rows]))
    rules = [None, *(np.sort(rng.choice(codes, int(share * codes.size), replace=False)) for share in SHARES)]
    rows = [rng.integers(0, len(bundle.catalog), rng.integers(0 if at % 7 == 3 else 1, 20)) for at in range(count)]
    return [(bundle.layout.encode(bundle.catalog.sids[row]), rules[rng.integers(len(rules))]) for row in rows]


def drafted(engine: Engine, requests: Sequence[Request], masked: bool = True) -> Drafts:
    """Drafts of the requests, with masks that are built for them and freed."""
    masks = {id(codes): engine.rule_masks.build(codes) for _, codes in requests if codes is not None}
    assert all(mask is not None for mask in masks.values())
    for mask in masks.values():
        engine.update_rules(engine.rule_masks.rows(mask))  # type: ignore[arg-type]
    prompts, rules = zip(*((prompt, masks.get(id(codes))) for prompt, codes in requests), strict=True)
    drafts = engine.draft(prompts, masked=masked, rules=rules)
    for mask in masks.values():
        engine.rule_masks.free(mask)  # type: ignore[arg-type]
    return drafts


def engines_on(bundle: Bundle) -> dict[str, Engine]:
    buckets: dict[str, Any] = {"buckets": Buckets((1, 4, 16), (40, 90)), "capture": call_again}
    engines = {
        "onnx": open_engine(bundle, "onnx", threads=1),
        "torch": open_engine(bundle, "torch", device="cpu"),
        "recorded": open_engine(bundle, "torch", device="cpu", **buckets),
    }
    if runs_here():
        engines["openvino"] = open_engine(bundle, "openvino", threads=1, precision="f32")
    return engines


@pytest.mark.parametrize("kind", ["bundle", "baseline"])
def test_engines_agree_and_obey_the_rule_of_each_request(kind: str, request: pytest.FixtureRequest) -> None:
    bundle, rng = request.getfixturevalue(kind), np.random.default_rng(0)
    engines = engines_on(bundle)
    for batch in (1, 3, 16):
        requests = requests_of(bundle, rng, batch)
        for masked in (True, False):
            found = {name: drafted(engine, requests, masked) for name, engine in engines.items()}
            for name in engines.keys() - {"torch"}:
                assert_same_drafts(found[name], found["torch"])
            arena = RuleMasks(bundle.space, 1 << 24, bundle.masks.following())
            for row, (prompt, codes) in enumerate(requests):
                live = found["onnx"].codes[row][np.isfinite(found["onnx"].scores[row])]
                if codes is None:
                    alone = engines["onnx"].draft([prompt], masked=masked)
                    assert_same_drafts(Drafts(*(each[row : row + 1] for each in vars(found["onnx"]).values())), alone)
                    continue
                mask = arena.build(codes)
                assert mask is not None and arena.allows(mask, live).all()
                assert not len(prompt) or live.size
                if masked:
                    assert (bundle.index.buckets_of(live) >= 0).all()


def test_a_narrow_rule_finds_its_items_far_from_the_best(bundle: Bundle) -> None:
    codes = np.unique(bundle.space.encode(bundle.catalog.sids[bundle.catalog.popular_rows]))
    prompt = bundle.layout.encode(bundle.catalog.sids[:5])
    for engine in engines_on(bundle).values():
        best = set(engine.draft([prompt]).codes[0].tolist())
        wanted = np.array([code for code in codes.tolist() if code not in best][:20])
        drafts = drafted(engine, [(prompt, wanted)])
        assert set(wanted.tolist()) <= set(drafts.codes[np.isfinite(drafts.scores)].tolist())
        nothing = drafted(engine, [(prompt, np.empty(0, np.int64)), (prompt, None)])
        assert not np.isfinite(nothing.scores[0]).any()
        assert_same_drafts(Drafts(nothing.codes[1:], nothing.scores[1:]), engine.draft([prompt]))


@pytest.mark.parametrize("kind", ["onnx", OPENVINO, "torch", "recorded"])
def test_what_is_added_to_a_rule_is_drafted_at_once(bundle: Bundle, kind: str) -> None:
    engine = engines_on(bundle)[kind]
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    best = engine.draft([prompt]).codes[0, :1]
    codes = np.unique(bundle.space.encode(bundle.catalog.sids))
    mask = engine.rule_masks.build(codes[codes != best[0]][::3])
    assert mask is not None
    engine.rule_masks.add(mask, best)
    assert engine.draft([prompt], rules=[mask]).codes[0, 0] == best[0]


def test_a_copy_on_a_device_takes_over_the_rows_of_a_rule(bundle: Bundle) -> None:
    requests = requests_of(bundle, np.random.default_rng(1), 6)
    own = open_engine(bundle, "torch", device="cpu")
    engine = open_engine(bundle, "torch", device="cpu")
    assert isinstance(engine, TorchEngine)
    engine.__dict__["_rule_bits"] = engine._rule_bits.clone()
    engine.copies_masks = True
    assert_same_drafts(drafted(engine, requests), drafted(own, requests))
    codes = np.unique(bundle.space.encode(bundle.catalog.sids))
    mask = engine.rule_masks.build(codes[::2])
    assert mask is not None
    engine.update_rules(engine.rule_masks.rows(mask))
    engine.rule_masks.add(mask, codes[1:40:2])
    engine.update_rules(engine.rule_masks.rows(mask, codes[1:40:2]))
    rows = engine.rule_masks.rows(mask)
    np.testing.assert_array_equal(engine._rule_bits.numpy()[rows], engine.rule_masks.bits[rows])


@pytest.mark.parametrize("kind", ["onnx", OPENVINO, "torch"])
def test_wrong_rules_are_refused(bundle: Bundle, kind: str) -> None:
    engine = open_engine(bundle, kind, rule_bytes=32 * 5)
    prompt = bundle.layout.encode(bundle.catalog.sids[:4])
    assert engine.takes_rules and engine.rule_masks.build(np.arange(50)) is None
    with pytest.raises(ValueError, match="2 rules for 1 prompts"):
        engine.draft([prompt], rules=[None, None])
    with pytest.raises(ValueError, match="outside of the 5 that there are"):
        engine.draft([prompt], rules=[np.array([[4, 2]] * bundle.space.depth)])
    with pytest.raises(ValueError, match="must have the shape"):
        engine.draft([prompt], rules=[np.array([[0, 1]])])
    assert_same_drafts(engine.draft([prompt], rules=[engine.rule_masks.all]), engine.draft([prompt]))


@pytest.fixture(scope="module")
def older(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of `bundle` in format 3. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "format-3"
    shutil.copytree(bundle.path, path)
    with patch.object(draft_head, "Beams", Unruled):
        model = load_checkpoint(path / CHECKPOINT)
        export_onnx(model, path / ONNX_GRAPH, bundle.manifest.beam_width, bundle.layout.max_tokens)
    seal_bundle(path, **bundle.manifest.model_dump(exclude={"files", "format_version"}), format_version=3)
    return Bundle(path)


def test_a_bundle_of_format_3_serves_without_rules(older: Bundle, bundle: Bundle) -> None:
    older.check()
    engine, newer = open_engine(older), open_engine(bundle)
    assert older.manifest.format_version == 3 and not engine.takes_rules and newer.takes_rules
    check_drafts(older.golden, engine)
    prompts = [bundle.layout.encode(bundle.catalog.sids[first : first + 4]) for first in (0, 50, 90)]
    for masked in (True, False):
        assert_same_drafts(engine.draft(prompts, masked=masked), newer.draft(prompts, masked=masked))
    engine.set_masks(older.masks)
    for rules in ([None] * 3, [newer.rule_masks.all] * 3):
        with pytest.raises(ValueError, match="takes no rules: its bundle was exported before there were any"):
            engine.draft(prompts, rules=rules)
    assert open_engine(older, "torch").takes_rules, "a checkpoint knows no formats"


def test_export_makes_a_bundle_of_it_that_takes_rules(
    older: Bundle, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    assert run_genrec("export", older.path, tmp_path / "new")[0] == 0
    new = Bundle(tmp_path / "new")
    new.check()
    assert new.manifest.format_version == 4
    engine = open_engine(new)
    assert isinstance(engine, OnnxEngine)
    requests = requests_of(new, np.random.default_rng(0), 5)
    assert_same_drafts(drafted(engine, requests), drafted(open_engine(new, "torch"), requests))
