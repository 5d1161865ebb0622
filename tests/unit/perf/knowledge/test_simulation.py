"""The simulator: it takes as many passes as the decoder, and prices them as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.knowledge.drafter import PoolDrafter
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.texts import GREEDY
from genrec.knowledge.token_tree import TokenTree
from perf.knowledge.pass_cost import H100_7B, MeasuredCost, Step
from perf.knowledge.replay import Chances, by_load, fixed_trees, replay
from perf.knowledge.runs import Way
from perf.knowledge.simulate import timed_steps
from perf.knowledge.trace import Trace, on_the_way, traced

FREE = replace(H100_7B, peak=1e30, cache_bytes=0.0)


@pytest.fixture(scope="module")
def written(knowledge_folder: Path) -> tuple[KnowledgeModel, list, list[np.ndarray], Trace]:
    model = KnowledgeModel(knowledge_folder)
    items = list(model._row)[:6]
    requests = [model.item_request(item, max_new_tokens=30 + number) for number, item in enumerate(items)]
    way = Way(PoolDrafter(model.pools, max_nodes=6, min_share=0.1), GREEDY)
    texts = timed_steps(model, way, 2, requests)[1]
    return model, requests, texts, traced(PoolDrafter(model.pools, max_nodes=64, min_share=0.01), requests, texts)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_it_takes_the_steps_of_the_decoder(written, batch_size: int) -> None:
    """Of greedy texts, which do not depend on what is drafted."""
    model, requests, texts, trace = written
    way = Way(PoolDrafter(model.pools, max_nodes=6, min_share=0.1), GREEDY)
    steps, again, _ = timed_steps(model, way, batch_size, requests)
    assert [text.tolist() for text in again] == [text.tolist() for text in texts]
    cost = MeasuredCost(np.eye(10)[0])  # a second a pass
    run = replay(trace, batch_size, cost, fixed_trees(6, 0.1))
    assert sum(map(len, texts)) / run.tokens_per_s == pytest.approx(len(steps))
    assert run.tokens_per_step > 1.5
    plain = replay(trace, batch_size, cost, None)
    assert plain.tokens_per_step == 1 and plain.tokens_per_s < run.tokens_per_s


def test_by_load_drafts_much_where_it_is_free_and_nothing_where_it_is_dear(written) -> None:
    *_, trace = written
    choose = by_load(Chances(trace))
    free, large = (replay(trace, 2, FREE, each) for each in (choose, fixed_trees(64, 0.0)))
    assert free.tokens_per_s == pytest.approx(large.tokens_per_s, rel=0.05) and free.drafted > 1
    dear = replay(trace, 2, replace(FREE, peak=1e9, bandwidth=1e30, overhead_s=0.0), choose)
    assert dear.drafted < 1 < free.drafted
    late = replay(trace, 2, FREE, choose, draft_s=1.0, pauses=True, texts=300)
    assert late.drafted < 0.2 * free.drafted, "drafting itself does not pay, and goes on"


def test_a_pass_costs_what_the_roofline_says() -> None:
    one, few, many, more = H100_7B.seconds(1, np.array([1, 64, 1000, 2000]), 100, 0, 0) - H100_7B.overhead_s
    assert one == pytest.approx(2 * 7.6e9 / (0.8 * 3.35e12), rel=0.01) and few == pytest.approx(one, rel=0.01)
    assert more / many == pytest.approx(2, rel=0.01)
    assert many == pytest.approx(2 * 7.6e9 * 1000 / (0.6 * 989e12), rel=0.02)


def test_costs_are_found_again_in_the_steps_that_they_explain() -> None:
    rng = np.random.default_rng(0)
    true = MeasuredCost(np.array([0.01, 1e-4, 1e-6, 5e-3, 1e-4, 4e-4, 3e-4, 3e-4, 2e-4, 1e-4]))
    steps = []
    for _ in range(300):
        texts, begun = int(rng.integers(1, 64)), int(rng.integers(0, 3))
        cached, packed = texts * int(rng.integers(70, 200)), texts * int(rng.integers(1, 17))
        seconds = float(true.seconds(texts, np.array([packed]), cached, begun, begun * 70)[0])
        slow = 5 if rng.random() < 0.03 else 1  # something else ran
        steps.append(Step(seconds * slow, begun, begun * 70, texts, cached, packed))
    found = MeasuredCost.fitted(steps)
    for packed in (10, 40, 200, 900):
        told = (max(1, packed // 8), np.array([packed]), packed * 12, 1, 70)
        assert found.seconds(*told) == pytest.approx(true.seconds(*told), rel=0.05)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_way_through_a_tree(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 12))
    tokens = np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), np.int32)
    parents = np.array([data.draw(st.integers(-1, node - 1)) for node in range(size)], np.int32)
    following = np.array(data.draw(st.lists(st.integers(0, 2), max_size=6)), np.int32)
    expected = []
    for node in range(size):
        branch, at = [], node
        while at >= 0:
            branch.insert(0, int(tokens[at]))
            at = int(parents[at])
        expected.append(branch == following[: len(branch)].tolist())
    tree = TokenTree(tokens, parents, np.ones(size, np.float32))
    assert on_the_way(tree, following).tolist() == expected


def test_a_trace_is_kept(written, tmp_path: Path) -> None:
    *_, trace = written
    trace.save(tmp_path / "trace.npz")
    cost = MeasuredCost(np.ones(10))
    assert replay(Trace.load(tmp_path / "trace.npz"), 2, cost, fixed_trees(6, 0.1)) == replay(
        trace, 2, cost, fixed_trees(6, 0.1)
    )
