"""Each choice is served and asked; here the servers are stand-ins with figures of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import Bundle
from genrec.serving.triton import TritonStartError
from genrec.tuning import measurement
from genrec.tuning.choices import Choice, Measured
from genrec.tuning.measurement import LEAST_SAME, drawn, measure


def choice(threads: int, engine: str = "onnx", precision: str = "f32") -> Choice:
    return Choice(engine=engine, precision=precision, threads=threads, instances=1)


Figures = dict[Choice, Sequence[tuple[float, float, list[str]]]]


def stand_ins(monkeypatch: pytest.MonkeyPatch, figures: Figures) -> list[Choice]:
    """Servers that take what is given for their first run, second run, ..; gives the order that they are asked in."""
    asked: list[Choice] = []

    def served(bundle: Path, one: Choice, requests: list[bytes], seconds: float) -> tuple[Measured, list[list[str]]]:
        p50, rate, items = figures[one][asked.count(one)]
        asked.append(one)
        return Measured(choice=one, p50_ms=p50, p95_ms=p50, p99_ms=p50, requests_per_s=rate), [items]

    monkeypatch.setattr(measurement, "_served", served)
    return asked


def test_the_better_of_two_runs_counts_and_what_is_hopeless_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, many, slow = choice(2), choice(1), choice(3)
    same = ["a"] * 10
    figures: Figures = {
        fast: [(4.0, 100.0, same), (5.0, 110.0, same)],
        many: [(9.0, 300.0, same), (8.0, 200.0, same)],
        slow: [(9.0, 100.0, same)],
    }
    asked, told = stand_ins(monkeypatch, figures), []
    found = measure(Path(), [fast, many, slow], [[b"a"]], 1.0, 2, told.append)
    assert asked == [fast, many, slow, many, fast]
    assert [(one.choice, one.p50_ms, one.requests_per_s) for one in found] == [
        (fast, 4.0, 110.0),
        (many, 8.0, 300.0),
        (slow, 9.0, 100.0),
    ]
    assert len(told) == 5


def test_a_precision_that_changes_the_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, good, bad = choice(1), choice(1, "openvino", "bf16"), choice(2, "openvino", "bf16")
    items = [str(number) for number in range(20)]
    figures: Figures = {
        exact: [(4.0, 100.0, items)],
        good: [(2.0, 200.0, [*reversed(items[:10]), "x"])],
        bad: [(1.0, 300.0, [*items[:9], *items[10:]])],
    }
    stand_ins(monkeypatch, figures)
    found = measure(Path(), [exact, good, bad], [[b"a"]], 1.0, 1)
    assert [one.same for one in found] == [None, 1.0, 0.9]
    assert [bool(one.refused) for one in found] == [False, False, True]
    assert found[2].refused == f"bf16 keeps 90.0% of the 10 best, less than {LEAST_SAME:.0%}"


def test_a_server_that_does_not_start_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TritonStartError("backbone: scores differ\nmore lines")

    monkeypatch.setattr(measurement, "serve_bundle", fails)
    found = measure(Path(), [choice(1)], [[b"a"]], 1.0)
    assert [one.refused for one in found] == ["backbone: scores differ"]


def test_histories_are_drawn_of_every_length_and_always_the_same(bundle: Bundle) -> None:
    histories = drawn(bundle)
    lengths = {len(history) for history in histories}
    assert min(lengths) == 1 and max(lengths) == bundle.manifest.prompt.max_history
    assert histories == drawn(bundle)
    known = set(bundle.catalog.item_ids.tolist())
    assert all(set(history) <= known for history in histories)
