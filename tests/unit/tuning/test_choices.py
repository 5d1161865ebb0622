"""What is worth measuring, and which of the measured serves best."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.serving.repository import Deployment
from genrec.tuning.choices import NEAR, Aim, Choice, Measured, Wanted, candidates, chosen

ANY = Wanted()
BOTH = [("onnx", "f32"), ("openvino", "bf16")]


def shares(cores: int, wanted: Wanted = ANY) -> list[tuple[int, int]]:
    return [(one.threads, one.instances) for one in candidates(cores, BOTH[:1], wanted)]


def test_processors_are_shared_in_every_likely_way() -> None:
    assert shares(1) == [(1, 1)]
    assert shares(2) == [(2, 1), (1, 1), (1, 2)]
    assert shares(6) == [(6, 1), (5, 1), (3, 2), (1, 4)]
    assert {one.engine for one in candidates(2, BOTH, Wanted())} == {"onnx", "openvino"}


def test_what_is_given_is_not_chosen() -> None:
    assert shares(8, Wanted(threads=3)) == [(3, 1), (3, 2), (3, 4), (3, 8)]
    assert shares(8, Wanted(instances=3)) == [(2, 3)]
    assert shares(2, Wanted(threads=1, instances=1)) == [(1, 1)]
    assert candidates(2, BOTH, Wanted(precision="f32")) == candidates(2, BOTH[:1], Wanted())


def test_every_candidate_can_be_deployed() -> None:
    for choice in candidates(8, BOTH, Wanted()):
        assert Deployment(**choice.model_dump()).engine == choice.engine
    words = Choice(engine="openvino", precision="bf16", threads=4, instances=2).options
    assert words == "--engine openvino --precision bf16 --threads 4 --instances 2"


figures = st.floats(0.1, 1e4)
many = st.lists(st.tuples(figures, figures, st.sampled_from(["", "too slow"])), min_size=1, max_size=8)


@given(many)
def test_no_choice_is_slower_than_another_by_more_than_what_counts_as_the_same(
    found: list[tuple[float, float, str]],
) -> None:
    measured = [
        Measured(
            choice=Choice(engine="onnx", precision="f32", threads=at + 1, instances=1),
            p50_ms=ms,
            requests_per_s=rate,
            refused=refused,
        )
        for at, (ms, rate, refused) in enumerate(found)
    ]
    able = [one for one in found if not one[2]]
    if not able:
        with pytest.raises(ValueError, match="no deployment could be measured: too slow"):
            chosen(measured, Aim.LATENCY)
        return
    for aim, cost, other in (
        (Aim.LATENCY, lambda one: one[0], lambda one: 1 / one[1]),
        (Aim.THROUGHPUT, lambda one: 1 / one[1], lambda one: one[0]),
    ):
        best = chosen(measured, aim)
        taken = (best.p50_ms, best.requests_per_s)
        least = min(map(cost, able))
        assert not best.refused and cost(taken) <= NEAR * least
        # And of those, none is better in the other way by more than that.
        assert other(taken) <= NEAR * min(other(one) for one in able if cost(one) <= NEAR * least)
