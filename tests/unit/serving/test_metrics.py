"""What the steps count, with a stand-in for Triton's side of it."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from genrec.rules import Applied, RuleBook
from tests.unit.rules.shops import KINDS, Shop

# They import Triton's own module.
MODULES = ("genrec.serving.page", "genrec.serving.step", "genrec.serving.metrics")
STEP_TIMES = ("queue", "compute")
Key = tuple[str, tuple[tuple[str, str], ...]]


class Page:
    """Stands for Triton's `/metrics` page: values by name and labels, and how often each was written."""

    def __init__(self) -> None:
        self.values: dict[Key, float] = {}
        self.writes = 0
        self.refused: list[int] = []

    def family(self, name: str, description: str, kind: str) -> Any:
        assert description

        def metric(labels: dict[str, str]) -> Any:
            key = name, tuple(sorted((one, value) for one, value in labels.items() if one != "bundle_version"))
            assert labels["bundle_version"] == "v7" and key not in self.values
            self.values[key] = 0.0

            def write(value: float) -> None:
                self.values[key] += value
                self.writes += 1

            return Mock(increment=write, set=write)

        return SimpleNamespace(Metric=metric)

    def of(self, name: str) -> dict[str, float]:
        """The values of a metric, by the value of its label; those that are 0 left out."""
        return {
            labels[0][1] if labels else "": value
            for (own, labels), value in self.values.items()
            if own == name and value
        }


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def metrics(page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.MetricFamily = Mock(side_effect=page.family, COUNTER="counter", GAUGE="gauge")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("genrec.serving.metrics")
    versions: Any = SimpleNamespace(current=SimpleNamespace(version=3, created=5.0))
    refusals: Any = SimpleNamespace(more=lambda: page.refused.pop() if page.refused else 0)
    own = module.Page({"bundle_version": "v7"})
    found = module.Metrics(own, versions, "", refusals)
    found.close = own.close
    own.start()
    yield found
    own.close()
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def shop() -> Shop:
    return Shop(np.random.default_rng(0), 12)


@pytest.fixture
def applied(shop: Shop) -> Callable[..., Applied | None]:
    def make(text: str, deployment: str = "") -> Applied | None:
        return RuleBook(KINDS, deployment).applied(shop.catalog, text.encode())

    return make


def test_counts_are_published_once_for_many_requests(metrics: Any, page: Page) -> None:
    before = page.writes
    for _ in range(100):
        metrics.count(np.array([[8, 6, 2, 1], [8, 8, 0, 0]], np.int32), 3, [time.monotonic_ns()] * 2)
    metrics.close()
    assert page.of("genrec_requests_total") == {"": 200}
    assert page.of("genrec_drafted_total") == {"": 1600} and page.of("genrec_fallback_items_total") == {"": 100}
    assert page.of("genrec_voted_items_total") == {"": 300}
    assert page.writes - before <= 2 * 35  # 25 of them of the histogram; twice, if the clock struck meanwhile


def test_a_histogram_has_what_prometheus_takes_for_one(metrics: Any, page: Page) -> None:
    took_ms = [0.05, 4.0, 4.0, 90.0, 70_000.0]
    now = time.monotonic_ns()
    metrics.count(np.zeros((5, 4), np.int32), 0, [now - int(1e6 * ms) for ms in took_ms])
    metrics.close()
    buckets = {float(le): count for le, count in page.of("genrec_request_seconds_bucket").items()}
    assert [buckets.get(bound, 0) for bound in (0.003, 0.005, 0.07, 0.1, 5.0, float("inf"))] == [1, 3, 3, 4, 4, 5]
    assert page.of("genrec_request_seconds_count") == {"": 5}
    assert page.of("genrec_request_seconds_sum")[""] == pytest.approx(70.09805, abs=0.05)


def test_a_step_tells_waiting_from_work(metrics: Any, page: Page) -> None:
    times = sys.modules["genrec.serving.page"].StepTimes(metrics._page, "backbone", True)
    times.observe([10**9, 2 * 10**9], 3 * 10**9, 3 * 10**9 + 4 * 10**6)
    metrics._page.close()
    sums = {name: page.values[f"genrec_step_{name}_seconds_sum", (("step", "backbone"),)] for name in STEP_TIMES}
    assert sums == pytest.approx({"queue": 3.0, "compute": 0.008})


def test_what_the_step_before_refused_is_published(metrics: Any, page: Page) -> None:
    page.refused.append(7)
    metrics.close()
    assert page.of("genrec_overloaded_requests_total") == {"": 7}


def test_every_kind_of_rules_is_counted_once_for_a_request(
    metrics: Any, page: Page, applied: Callable[..., Applied | None], shop: Shop
) -> None:
    where = '"where": {"attribute": "price", "<": 20}'
    rules = [
        applied(
            f'{{{where}, "allow": ["a"], "deny": ["b"], "at_most": [{{"attribute": "category", "items": 1}}], "boost": '
            '[{"attribute": "price", "times": 1}], "bucket_order": {"lowest": "price"}, "explain": true}'
        ),
        None,
        applied(f"{{{where}}}", f"{{{where}}}"),
        applied("", '{"deny": ["b"], "bucket_order": "popularity"}'),
    ]
    nothing = np.empty(0, np.int32)
    ruled = {
        number: one.answer(lambda *_: (nothing, nothing), np.empty(0, np.float32), nothing, 3)
        for number, one in enumerate(rules)
        if one is not None
    }
    metrics.count_rules(rules, ruled, [True, False, False, False])
    metrics.close()
    once = dict.fromkeys(("allow", "at_most", "boost", "bucket_order", "explain"), 1)
    assert page.of("genrec_rule_requests_total") == once | {"where": 2, "deny": 2}
    assert (page.of("genrec_rule_narrowed_total"), page.of("genrec_rule_checked_total")) == ({"": 1}, {"": 2})


def test_what_each_rule_drops_is_counted_whoever_gave_it(
    metrics: Any, page: Page, applied: Callable[..., Applied | None], shop: Shop
) -> None:
    rows = np.arange(12, dtype=np.int32)
    blocked = rows[:2]
    one = applied('{"deny": ["item-3", "item-4"]}', '{"deny": ["item-2"], "allow": ["item-2", "item-3", "item-5"]}')
    assert one is not None
    ruled = one.answer(
        lambda begin, end: (rows[begin:end], np.arange(12)[begin:end]), np.zeros(12, np.float32), blocked, 3
    )
    metrics.count_rules([None, one], {1: ruled}, [False, True])
    metrics.close()
    # Of ten that are not blocked, deny takes 2 and 3, and allow leaves 5 of the others; 4 is gone by then.
    assert page.of("genrec_rule_dropped_total") == {"deny": 1 + 1, "allow": 7}


def test_every_label_is_there_from_the_start(metrics: Any, page: Page) -> None:
    labels = {labels[0] for name, labels in page.values if name == "genrec_rule_requests_total"}
    assert labels == {
        ("kind", kind) for kind in ("where", "allow", "deny", "at_most", "boost", "bucket_order", "explain")
    }
    assert ("genrec_rule_narrowed_total", ()) in page.values and ("genrec_rule_checked_total", ()) in page.values
