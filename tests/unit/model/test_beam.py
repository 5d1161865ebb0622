"""The masked beam against a search by tuples, with every form of a table, at any state of it, and under rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrec.catalog import PrefixTable, RuleMasks, SemanticIdSpace
from genrec.engines.onnx import RULE_BITS, RULE_ROWS, graph_masks
from genrec.model.beam import Beams
from genrec.model.masks import Masks, Rules
from genrec_builders.export.onnx import write_graph

# One level, plain ones, a level whose prefixes have several rows (the last one cut short), keys of 64 bits.
SPACES = tuple(map(SemanticIdSpace, ((9,), (5, 11, 7), (3, 600, 5), (300, 300, 300, 300, 4))))
BATCH = 2


class Search(nn.Module):
    """A beam search whose logits are the same for every beam: [B, T_l] per level. The last inputs may be rules."""

    def __init__(self, space: SemanticIdSpace, width: int) -> None:
        super().__init__()
        self.space, self.width = space, width

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        depth = self.space.depth
        logits, bits, keys = inputs[:depth], inputs[depth : 2 * depth], inputs[2 * depth : 3 * depth - 1]
        rules = inputs[3 * depth - 1 :]
        masks = Masks(bits, keys, Rules(*rules) if rules else None)
        beams = Beams(logits[0].shape[0], self.space.levels, masks, self.width)
        for level in range(depth):
            beams.step(level, logits[level][:, None].expand(-1, beams.width(level - 1), -1))
        return beams.codes, beams.scores


def logits_of(space: SemanticIdSpace, rng: np.random.Generator, batch: int = BATCH) -> list[np.ndarray]:
    return [rng.standard_normal((batch, size)).astype(np.float32) for size in space.levels]


def expected(
    space: SemanticIdSpace, logits: list[np.ndarray], row: int, live: set[int], width: int
) -> tuple[list[float], bool]:
    """The scores of a beam search over the tuples of `live`, best first, and whether a choice of it nearly ties."""
    sids = {tuple(sid) for sid in space.decode(np.array(sorted(live), np.int64)).tolist()}
    beams: dict[tuple[int, ...], float] = {(): 0.0}
    tied = False
    for level in range(space.depth):
        values = logits[level][row].astype(np.float64)
        log_p = values - np.logaddexp.reduce(values)
        grown = {sid[: level + 1]: beams[sid[:level]] + log_p[sid[level]] for sid in sids if sid[:level] in beams}
        ranked = sorted(grown.items(), key=lambda pair: -pair[1])
        tied |= len(ranked) > width and ranked[width - 1][1] - ranked[width][1] < 1e-4
        beams = dict(ranked[:width])
    return list(beams.values()), tied


def check(space: SemanticIdSpace, logits: list[np.ndarray], found: tuple, live: set[int], width: int) -> None:
    codes, scores = (np.asarray(each) for each in found)
    assert codes.shape == scores.shape == (len(logits[0]), space.beams(width))
    for row in range(len(codes)):
        finite = np.isfinite(scores[row])
        drafted = codes[row][finite]
        assert set(drafted.tolist()) <= live and len(set(drafted.tolist())) == drafted.size
        theirs, tied = expected(space, logits, row, live, width)
        if not tied:  # else what follows depends on the last bits of a score
            np.testing.assert_allclose(scores[row][finite], theirs, rtol=1e-4, atol=1e-4)
        sids = space.decode(drafted)
        own = sum(torch.tensor(logits[level][row]).log_softmax(0)[sids[:, level]] for level in range(space.depth))
        np.testing.assert_allclose(own, scores[row][finite], rtol=1e-4, atol=1e-4)


@settings(max_examples=60)
@given(st.sampled_from(SPACES), st.sampled_from([1, 4, 30]), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_the_beam_finds_the_best_of_what_is_live_at_any_state(
    space: SemanticIdSpace, width: int, seed: int, changes: int
) -> None:
    rng = np.random.default_rng(seed)
    some = rng.integers(0, space.size, 50)
    table, live = PrefixTable.build(space, some[:25]), set(some[:25].tolist())
    masks, logits = Masks.of(table), logits_of(space, rng)
    for _ in range(changes):
        part = rng.choice(some, 15)
        if rng.random() < 0.5:
            table.add(part)
            live |= set(part.tolist())
        else:
            table.discard(part)
            live -= set(part.tolist())
    with torch.inference_mode():
        found = Search(space, width)(*map(torch.tensor, logits), *masks.bits, *masks.keys)
    check(space, logits, found, live, width)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("width", [3, 40])
def test_a_graph_finds_the_same_with_any_table_and_sees_its_changes(
    space: SemanticIdSpace, width: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    names = [f"logits_{level}" for level in range(space.depth)]
    traced = graph_masks(PrefixTable.build(space, np.arange(1)))
    inputs = dict(zip(names, map(torch.tensor, logits_of(space, rng)), strict=True))
    inputs |= {name: torch.tensor(array) for name, array in traced.items()}
    free = dict.fromkeys([*names, "codes", "scores"], ("batch",)) | {name: (f"{name}_rows",) for name in traced}
    write_graph(Search(space, width), inputs, ("codes", "scores"), free, tmp_path / "search.onnx")
    session = ort.InferenceSession(tmp_path / "search.onnx", providers=["CPUExecutionProvider"])
    for items, batch in ((10, 1), (1000, 3), (60_000, 2)):
        codes = rng.integers(0, space.size, items)
        table, logits = PrefixTable.build(space, codes), logits_of(space, rng, batch)
        feeds = dict(zip(names, logits, strict=True)) | graph_masks(table)
        check(space, logits, session.run(None, feeds), set(codes.tolist()), width)
        table.discard(codes[: items // 2])
        check(space, logits, session.run(None, feeds), set(codes.tolist()) - set(codes[: items // 2].tolist()), width)
        free_feeds = feeds | graph_masks(table.unrestricted())
        drafted, scores = session.run(None, free_feeds)
        assert np.isfinite(scores).all()
        if space.size <= 2000:
            check(space, logits, (drafted, scores), set(range(space.size)), width)


@pytest.mark.parametrize("space", SPACES)
def test_a_copy_on_another_device_takes_over_what_changed(space: SemanticIdSpace) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, space.size, 300)
    table = PrefixTable.build(space, codes[:200])
    own = Masks.of(table)
    copy = Masks(tuple(each.clone() for each in own.bits), tuple(each.clone() for each in own.keys))
    for change, part in ((table.add, codes[200:]), (table.discard, codes[150:250])):
        change(part)
        copy.update(table, table.slots(part))
    for ours, theirs in zip((*copy.bits, *copy.keys), (*table.bits, *table.keys), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def rules_of(
    space: SemanticIdSpace, arena: RuleMasks, kinds: list[str], rng: np.random.Generator
) -> list[tuple[set[int] | None, np.ndarray | None]]:
    """What each rule allows, and its mask. Those of "most" items of a small space are exact."""
    rules: list[tuple[set[int] | None, np.ndarray | None]] = []
    for kind in kinds:
        if kind == "none":
            rules.append((None, None))
            continue
        if kind == "most" and space.size <= 10_000:
            codes = rng.permutation(space.size)[: space.size * 9 // 10 + 1]
        else:
            codes = np.unique(rng.integers(0, space.size, 40))
        mask = arena.build(codes)
        assert mask is not None
        rules.append((set(codes.tolist()), mask))
    return rules


def check_rules(
    space: SemanticIdSpace,
    arena: RuleMasks,
    rules: list[tuple[set[int] | None, np.ndarray | None]],
    logits: list[np.ndarray],
    found: tuple,
    live: set[int] | None,
    width: int,
) -> None:
    """live: of the catalogue; None if its masks are off."""
    keys = [int(radix) * -(-size // 256) for radix, size in zip(space.radix, space.levels, strict=True)]
    for row, (allowed, mask) in enumerate(rules):
        codes, scores = (np.asarray(each)[row : row + 1] for each in found)
        drafted = codes[np.isfinite(scores)]
        if mask is not None:
            assert arena.allows(mask, drafted).all()
        wanted = allowed if live is None else live if allowed is None else live & allowed
        exact = mask is None or mask[:, 1].tolist() == keys
        if wanted is None:
            assert np.isfinite(scores).all()
        elif exact:
            check(space, [each[row : row + 1] for each in logits], (codes, scores), wanted, width)
        else:
            assert live is None or set(drafted.tolist()) <= live
            if live is not None and len(live) <= width:  # then nothing was cut off
                assert wanted <= set(drafted.tolist())


@settings(max_examples=40)
@given(
    st.sampled_from(SPACES),
    st.sampled_from([1, 4, 64]),
    st.lists(st.sampled_from(["none", "few", "most"]), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_rule_narrows_the_beam_of_its_own_request(
    space: SemanticIdSpace, width: int, kinds: list[str], masked: bool, seed: int
) -> None:
    rng, arena = np.random.default_rng(seed), RuleMasks(space, 1 << 20)
    rules = rules_of(space, arena, kinds, rng)
    # A rule allows items of the catalogue: else a prefix may have a live item and an allowed one, but not both.
    theirs = [sorted(allowed) for allowed, _ in rules if allowed is not None]
    codes = np.concatenate([rng.integers(0, space.size, 30), *theirs]).astype(np.int64)
    table, logits = PrefixTable.build(space, codes), logits_of(space, rng, len(kinds))
    masks = Masks.of(table if masked else table.unrestricted())
    rows = arena.stacked([mask for _, mask in rules])
    with torch.inference_mode():
        inputs = (*map(torch.tensor, logits), *masks.bits, *masks.keys, torch.tensor(arena.bits), torch.tensor(rows))
        found = Search(space, width)(*inputs)
    check_rules(space, arena, rules, logits, found, set(codes.tolist()) if masked else None, width)


@pytest.mark.parametrize("space", SPACES)
def test_a_graph_obeys_rules_of_any_arena_and_batch(space: SemanticIdSpace, tmp_path: Path) -> None:
    rng, width = np.random.default_rng(0), 64
    names = [f"logits_{level}" for level in range(space.depth)]
    table, arena = PrefixTable.build(space, rng.integers(0, space.size, 1000)), RuleMasks(space, 32)
    ruled = {RULE_BITS: arena.bits, RULE_ROWS: arena.stacked([None] * BATCH)}
    traced = graph_masks(table) | ruled
    inputs = dict(zip(names, map(torch.tensor, logits_of(space, rng)), strict=True))
    inputs |= {name: torch.tensor(array) for name, array in traced.items()}
    free = {name: (f"{name}_rows",) for name in traced}
    free |= dict.fromkeys([*names, "codes", "scores", RULE_ROWS], ("batch",))
    write_graph(Search(space, width), inputs, ("codes", "scores"), free, tmp_path / "search.onnx")
    session = ort.InferenceSession(tmp_path / "search.onnx", providers=["CPUExecutionProvider"])
    for kinds in (["none"], ["most"], ["few", "none", "most"], ["most", "few"] * 8):
        arena = RuleMasks(space, 1 << 20)
        rules, logits = rules_of(space, arena, kinds, rng), logits_of(space, rng, len(kinds))
        theirs = [sorted(allowed) for allowed, _ in rules if allowed is not None]
        codes = np.concatenate([rng.integers(0, space.size, 30), *theirs]).astype(np.int64)
        table = PrefixTable.build(space, codes)
        for masks, live in ((table, set(codes.tolist())), (table.unrestricted(), None)):
            feeds = dict(zip(names, logits, strict=True)) | graph_masks(masks)
            feeds |= {RULE_BITS: arena.bits, RULE_ROWS: arena.stacked([mask for _, mask in rules])}
            check_rules(space, arena, rules, logits, session.run(None, feeds), live, width)
