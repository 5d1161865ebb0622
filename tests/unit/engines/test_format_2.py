"""A bundle of format 2, whose graph walks a trie of prefixes: it serves as it is, and `genrec export` renews it.

The graph and its arrays are written here as that format's builder wrote them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrec.bundle import CHECKPOINT, MASKS, ONNX_GRAPH, Bundle, BundleError, seal_bundle
from genrec.catalog import PrefixTrie, SemanticIdSpace
from genrec.engines import open_engine
from genrec.engines.onnx import graph_masks
from genrec.engines.openvino import runs_here
from genrec.golden import check_drafts
from genrec.model import draft_head
from genrec.model.beam import Beams
from genrec.model.masks import Masks
from genrec.model.nezha import NezhaModel
from genrec.pipeline import Pipeline
from genrec_builders.build import export_bundle
from genrec_builders.export.onnx import write_graph
from tests.near import assert_same_drafts, assert_same_ranking
from tests.tensorrt_llm_double import exported_for_double


def trie_of(space: SemanticIdSpace, sids: np.ndarray) -> PrefixTrie:
    """One bit set for each existing prefix; the children of a node are neighbours, in order of their codes."""
    whole = {tuple(sid) for sid in sids.tolist()}
    nodes = [sorted({sid[:length] for sid in whole}) for length in range(space.depth + 1)]
    bits = [np.zeros((len(nodes[level]), -(-size // 8)), np.uint8) for level, size in enumerate(space.levels)]
    first_child: list[list[int]] = [[] for _ in space.levels[1:]]
    for level in range(space.depth):
        number = {node: row for row, node in enumerate(nodes[level])}
        for child in nodes[level + 1]:
            bits[level][number[child[:-1]], child[-1] // 8] |= 1 << child[-1] % 8
        if level + 1 < space.depth:
            parents = [child[:-1] for child in nodes[level + 1]]
            first_child[level] = [parents.index(node) for node in nodes[level]]
    return PrefixTrie(tuple(bits), tuple(np.array(each, np.int32) for each in first_child))


class TrieBeams(Beams):
    """The search of format 2. masks: a trie's bits, and the first children in place of keys."""

    def _mask(self, level: int, width: int) -> Tensor:
        if level == 0:
            self._nodes = torch.zeros_like(self.codes)
        size = self._levels[level]
        octets = self._masks.bits[level][self._nodes].int()
        allowed = (octets[..., None] >> torch.arange(8, dtype=torch.int32) & 1).reshape(-1, width, 8 * octets.shape[-1])
        self._allowed = allowed[..., :size]
        return torch.where(self._allowed == 1, 0.0, -torch.inf)

    def step(self, level: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        parent, code = super().step(level, logits)
        if level + 1 < len(self._levels):
            below = (self._allowed.cumsum(2) - self._allowed).long()
            before = self.of_parents(level, below, parent).gather(2, code[..., None])[..., 0]
            first = self._masks.keys[level][self._nodes.gather(1, parent)]
            self._nodes = (first + before).clamp(max=self._masks.bits[level + 1].shape[0] - 1)
        return parent, code


class Graph(nn.Module):
    def __init__(self, model: NezhaModel, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, token_ids: Tensor, lengths: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor]:
        depth = len(self.model.levels)
        return self.model.draft(token_ids, lengths, Masks(masks[:depth], masks[depth:]), self.width)[:2]


def write_format_2(bundle: Bundle, path: Path) -> Bundle:
    """A copy of `bundle` in that format."""
    shutil.copytree(bundle.path, path)
    shutil.rmtree(path / MASKS)
    trie = trie_of(bundle.space, bundle.catalog.sids[bundle.catalog.popular_rows])
    (path / "index" / "prefixes").mkdir()
    for name, arrays in (("bits", trie.bits), ("first_child", trie.first_child)):
        for level, array in enumerate(arrays):
            np.save(path / "index" / "prefixes" / f"{name}_{level}.npy", array)
    masks = {name: torch.tensor(array) for name, array in graph_masks(trie).items()}
    inputs = {"token_ids": torch.zeros(2, 12).int(), "lengths": torch.tensor([12, 9]).int(), **masks}
    free = {"token_ids": ("batch", "tokens"), "lengths": ("batch",), "codes": ("batch",), "scores": ("batch",)}
    free |= {name: (f"{name}_nodes",) for name in masks}
    graph = Graph(NezhaModel.load_checkpoint(path / CHECKPOINT), bundle.space.beams(bundle.manifest.beam_width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_head, "Beams", TrieBeams)
        write_graph(graph, inputs, ("codes", "scores"), free, path / ONNX_GRAPH)
    seal_bundle(path, **bundle.manifest.model_dump(exclude={"files", "format_version"}), format_version=2)
    return Bundle(path)


@pytest.fixture(scope="module")
def old(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Read-only."""
    return write_format_2(bundle, tmp_path_factory.mktemp("bundles") / "format-2")


@pytest.fixture
def prompts(bundle: Bundle, rng: np.random.Generator) -> list[np.ndarray]:
    return [bundle.layout.encode(bundle.catalog.sids[rng.integers(0, 400, count)]) for count in (1, 20, 4, 7)]


def test_it_is_whole_and_drafts_in_every_engine_as_its_successor_does(
    old: Bundle, bundle: Bundle, prompts: list[np.ndarray]
) -> None:
    assert old.manifest.format_version == 2 and bundle.manifest.format_version == 4
    old.check()
    theirs = open_engine(bundle, "onnx")
    for kind in ("onnx", "torch"):
        engine = open_engine(old, kind)
        check_drafts(old.golden, engine)
        for masked in (True, False):
            assert_same_drafts(engine.draft(prompts, masked=masked), theirs.draft(prompts, masked=masked))


def test_it_serves_in_process(old: Bundle, bundle: Bundle) -> None:
    histories = [[item.decode() for item in bundle.catalog.item_ids[first : first + 5]] for first in (0, 90, 200)]
    ours, theirs = (Pipeline.open(each).recommend(histories) for each in (old, bundle))
    for our, their in zip(ours, theirs, strict=True):
        assert_same_ranking(our.item_ids, our.scores, their.item_ids, their.scores)


def test_rules_are_checked_where_the_graph_cannot_draft_by_them(old: Bundle, bundle: Bundle) -> None:
    history = [item.decode() for item in bundle.catalog.item_ids[90:95]]
    rules = '{"where": {"attribute": "price", "<": 20}, "explain": true}'
    ours, theirs = (Pipeline.open(each).recommend([history], rules=rules)[0] for each in (old, bundle))
    price = dict(zip(bundle.catalog.item_ids.tolist(), bundle.catalog.columns["price"].tolist(), strict=True))
    for answer, narrowed in ((ours, False), (theirs, True)):
        assert answer.explanation is not None and answer.explanation["narrowed"] is narrowed
        assert len(answer.item_ids) == 10 and all(price[item_id.encode()] < 20 for item_id in answer.item_ids)


def test_its_graph_takes_no_masks_that_change_and_says_what_to_do(old: Bundle) -> None:
    with pytest.raises(ValueError, match=r"as first_child_0, .* make a newer one of it with `genrec export`"):
        open_engine(old, "onnx").set_masks(old.masks)
    assert not open_engine(old, "onnx").takes_rules
    with pytest.raises(ValueError, match="takes no rules"):
        _ = open_engine(old, "onnx").rule_masks
    if runs_here():
        with pytest.raises(ValueError, match=r"before there was the OpenVINO engine; .* `genrec export BUNDLE OUT`"):
            open_engine(old, "openvino")
    with pytest.raises(ValueError, match="drafts with a PrefixTable"):
        open_engine(old, "torch").set_masks(old.graph_masks)  # type: ignore[arg-type]


def test_export_makes_a_bundle_of_the_newest_format_of_it(
    old: Bundle, tmp_path: Path, prompts: list[np.ndarray], run_genrec: Callable[..., tuple[int, str]]
) -> None:
    assert run_genrec("export", old.path, tmp_path / "new")[0] == 0
    new = Bundle(tmp_path / "new")
    new.check()
    assert new.manifest.format_version == 4 and new.manifest.beam_width == old.manifest.beam_width
    assert not (new.path / "index" / "prefixes").exists() and (new.path / MASKS).is_dir()
    engine = open_engine(new, "onnx")
    assert_same_drafts(engine.draft(prompts), open_engine(old, "onnx").draft(prompts))
    engine.set_masks(new.masks)
    assert export_bundle(old.path, tmp_path / "wide", 80).format_version == 4


def test_a_copy_for_tensorrt_llm_keeps_the_format_and_drafts(
    old: Bundle, tmp_path: Path, prompts: list[np.ndarray], stand_in: Any
) -> None:
    fast = exported_for_double(old, tmp_path / "fast", max_batch_size=8)
    fast.check()
    assert fast.manifest.format_version == 2
    engine = open_engine(fast, "tensorrt_llm")
    try:
        assert_same_drafts(engine.draft(prompts), open_engine(old, "onnx").draft(prompts))
    finally:
        engine.close()


def test_a_missing_file_of_its_masks_is_named(old: Bundle, tmp_path: Path) -> None:
    path = Path(shutil.copytree(old.path, tmp_path / "copy"))
    (path / "index" / "prefixes" / "first_child_1.npy").unlink()
    with pytest.raises(BundleError, match=r"index/prefixes/first_child_1.npy"):
        _ = Bundle(path).graph_masks
