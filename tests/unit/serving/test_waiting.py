"""What the gate expects of the engines, from what they note."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.serving.waiting import Gate, Pace, Refusals, in_time, waiting_file

MS = 1_000_000


class Clock:
    now_ns = 1_000 * MS

    def wait(self, ms: float) -> None:
        self.now_ns += int(ms * MS)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with patch("genrec.serving.waiting.time.monotonic_ns", lambda: clock.now_ns):
        yield clock


def test_nobody_ahead_is_no_wait(clock: Clock, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "array")
    assert gate.expected_ns() == (0, 0)  # no engine is there yet
    pace = Pace(tmp_path / "array", 0, 0.010, 0.016, 4)
    assert gate.expected_ns() == (0, 0)
    number = gate.let_through()
    with pace.batch(number, 1):
        clock.wait(10)
        assert gate.expected_ns() == (0, 0)  # it may wait for this batch, but that is learnt only by letting it through
    assert gate.expected_ns() == (0, 0)


@given(first=st.floats(0.1, 100), more=st.floats(0.01, 100), most=st.sampled_from([1, 2, 12, 16, 64]))
def test_batches_are_as_small_as_throughput_allows(first: float, more: float, most: int) -> None:
    with TemporaryDirectory() as folder:
        pace = Pace(Path(folder) / "array", 0, (first + more) / 1e3, (first + most * more) / 1e3, most)
    size = pace.most_at_once
    assert size == most or size.bit_count() == 1

    def rate(size: float) -> float:
        return size / (first + size * more)

    assert 1 <= size <= most and rate(size) >= 0.9 * rate(most) * (1 - 1e-6)
    assert size == 1 or rate(size / 2) < 0.9 * rate(most) * (1 + 1e-6) or size == most


def test_what_is_refused_is_told_once(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "array")
    gate.refuse()
    refusals = Refusals(tmp_path / "array")
    assert refusals.more() == 0  # it is told of what comes from now on
    gate.refuse()
    gate.refuse()
    gate.let_through()
    assert refusals.more() == 2 and refusals.more() == 0


def test_what_is_ahead_is_taken_in_full_batches(clock: Clock, tmp_path: Path) -> None:
    gate, pace = Gate(tmp_path / "array"), Pace(tmp_path / "array", 0, 0.010, 0.016, 4)  # 8 ms, and 2 a request
    first = gate.let_through()
    with pace.batch(first, 1):
        for _ in range(5):
            gate.let_through()
        clock.wait(4)
        # 6 ms of this batch, one of four, and one of the other and of this one.
        ahead, expected = gate.expected_ns()
        assert ahead == 5 and expected == pytest.approx(2 * (6 + 16 + 12 + 5) * MS, rel=1e-6)
        clock.wait(6)
    assert gate.expected_ns()[1] == pytest.approx(2 * (16 + 12 + 5) * MS, rel=1e-6)


def test_engines_side_by_side_share_what_is_ahead(clock: Clock, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "array")
    paces = [Pace(tmp_path / "array", place, 0.010, 0.016, 4) for place in range(2)]
    numbers = [gate.let_through() for _ in range(2 + 8)]
    with paces[0].batch(numbers[0], 1), paces[1].batch(numbers[1], 1):
        ahead, expected = gate.expected_ns()
        assert ahead == 8 and expected == pytest.approx(2 * (10 + (16 + 16 + 10) / 2 + 5) * MS, rel=1e-6)
        clock.wait(10)


def test_a_slower_machine_is_learnt(clock: Clock, tmp_path: Path) -> None:
    gate, pace = Gate(tmp_path / "array"), Pace(tmp_path / "array", 0, 0.010, 0.016, 4)
    for _ in range(60):
        with pace.batch(gate.let_through(), 1):
            clock.wait(30)
        clock.wait(20)
    gate.let_through()
    clock.wait(1)
    assert gate.expected_ns()[1] == pytest.approx(2 * (3 * 12 + 5) * MS, rel=0.01)


def test_requests_that_were_given_up_are_forgotten(clock: Clock, tmp_path: Path) -> None:
    gate, pace = Gate(tmp_path / "array"), Pace(tmp_path / "array", 0, 0.010, 0.016, 4)
    with pace.batch(gate.let_through(), 1):
        clock.wait(10)
    for _ in range(100):
        gate.let_through()  # their client goes away: no engine ever sees them
    assert gate.expected_ns()[0] == 100
    clock.wait(60)
    assert gate.expected_ns() == (0, 0)  # one goes through to see
    assert gate.expected_ns()[0] == 100
    with pace.batch(gate.let_through(), 1):
        assert gate.expected_ns()[0] == 0
        clock.wait(10)


def test_a_step_that_begins_anew_goes_on_counting(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "array"
    gate, pace = Gate(path), Pace(path, 0, 0.010, 0.016, 4)
    with pace.batch(gate.let_through(), 1):
        clock.wait(10)
    assert Gate(path).let_through() == 2
    with Pace(path, 0, 0.010, 0.016, 4).batch(2, 1):
        assert gate.expected_ns()[0] == 0
    gate.close()
    gate.close()
    assert not path.exists()


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(1e-4, 1.0)), max_size=40), st.floats(1e-6, 1), st.floats(0, 1))
def test_an_expectation_is_always_a_number_of_some_size(
    batches: list[tuple[int, float]], one_s: float, more_s: float
) -> None:
    clock = Clock()
    with TemporaryDirectory() as folder, patch("genrec.serving.waiting.time.monotonic_ns", lambda: clock.now_ns):
        path = Path(folder) / "array"
        gate, pace = Gate(path), Pace(path, 0, one_s, one_s + more_s, 16)
        for size, took in batches:
            for _ in range(size):
                ahead, expected = gate.expected_ns()
                assert (ahead > 0) == (expected > 0)
                number = gate.let_through()
            with pace.batch(number, size):
                clock.wait(1e3 * took)


def test_each_server_has_a_file_of_its_own() -> None:
    assert waiting_file(os.getpid()) == waiting_file(os.getpid()) != waiting_file(os.getppid())


def test_a_request_that_may_be_shed_goes_when_half_as_many_wait() -> None:
    assert in_time(0, 1, sheddable=True)  # with nobody ahead
    assert in_time(100, 100, sheddable=False) and not in_time(101, 100, sheddable=False)
    assert in_time(50, 100, sheddable=True) and not in_time(51, 100, sheddable=True)
