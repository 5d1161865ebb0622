"""The soak test's own judgement: what it counts of processes, when it says that they grow, what it calls wrong."""

from __future__ import annotations

import mmap
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec_builders.data import Dataset, write_dataset
from genrec_client import Recommendations, RecommendedItem, Source
from perf.reliability.soak import plot, verdict
from perf.reliability.traffic import SHOWN_S, Item, Traffic
from perf.reliability.watch import SHARED, Sample, processes_of, sample, slope

QUIET: dict[str, Any] = {
    "wrong": [],
    "failed": [],
    "left_in_shared_memory": [],
    "grows": {"anonymous_mb": 0.4, "shared_mb": 0.0, "regions": 0.0, "handles": 0.2, "threads": -0.1},
}


def test_what_a_process_holds_is_counted(tmp_path: Path) -> None:
    before = sample(os.getpid(), 0.0, set())
    # Not from the allocator, which may have as much from earlier tests.
    held = mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"1" * len(held))
    files = [(tmp_path / str(number)).open("w") for number in range(5)]
    region = SHARED / f"genrec-test-{uuid.uuid4().hex}"
    ends, seen = threading.Event(), set[Path]()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    try:
        region.write_bytes(bytes(3 << 20))
        with region.open("r+b") as file, mmap.mmap(file.fileno(), 0):  # which keeps a handle of its own
            after = sample(os.getpid(), 7.0, seen)
    finally:
        region.unlink()
        ends.set()
        thread.join()
        for each in files:
            each.close()
    assert after.seconds == 7.0 and region in seen
    assert after.anonymous_mb - before.anonymous_mb == pytest.approx(60, abs=10)  # and what the test itself takes
    assert after.handles - before.handles == 7 and after.threads - before.threads == 1
    assert after.regions - before.regions == 1 and after.shared_mb - before.shared_mb == pytest.approx(3)


def test_the_processes_of_what_has_ended_are_none() -> None:
    assert processes_of(2**22 + 1) == {} and sample(2**22 + 1, 1.0, set()).processes == 0


def samples(mb_in_ten_minutes: float, noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(at, 100 + at / 600 * mb_in_ten_minutes + rng.normal(0, noise) + (at < 300) * -50, 8, 3, 90, 40, 5, {})
        for at in np.arange(0.0, 3600, 10)
    ]


def test_growth_is_told_after_the_warm_up() -> None:
    assert slope(samples(2.5), "anonymous_mb", 300) == pytest.approx(2.5)
    assert slope(samples(2.5), "threads", 300) == pytest.approx(0, abs=1e-9)
    assert slope(samples(0.5, noise=1.0), "anonymous_mb", 300) == pytest.approx(0.5, abs=0.3)
    with pytest.raises(ValueError, match="2 samples after 3575 s; at least 3 say how handles grows: run longer"):
        slope(samples(1), "handles", 3575)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"wrong": ["item a is gone for 40 s"]}, "item a is gone"),
        ({"failed": ["text: Unavailable: x"]}, "text: Unavailable"),
        ({"left_in_shared_memory": ["genrec-1"]}, "left in /dev/shm: genrec-1"),
        ({"grows": QUIET["grows"] | {"anonymous_mb": 1.2}}, "memory grows by 1.20 MB in ten minutes, limit 1"),
        ({"grows": QUIET["grows"] | {"handles": 3.0}}, "handles grow by 3.00"),
    ],
)
def test_what_is_not_as_it_should_be_is_said(more: dict[str, Any], says: str) -> None:
    assert verdict(QUIET) == []
    (said,) = verdict(QUIET | more)
    assert says in said


def test_figures_over_time_are_drawn(tmp_path: Path) -> None:
    plot(samples(1.0), [{"seconds": 600.0, "what": "triton", "back_s": 2.0}], tmp_path / "soak.svg")
    assert "shared memory, MB" in (tmp_path / "soak.svg").read_text()


@pytest.fixture(scope="module")
def traffic(bundle: Bundle, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    data = tmp_path_factory.mktemp("data") / "shop"
    write_dataset(dataset, data)
    return Traffic(bundle, data, "", [], "", data)


def test_wrong_answers_are_told_from_right_ones(traffic: Traffic) -> None:
    ids = list(traffic._items)[:4]
    traffic._gone = {ids[3]: 100.0}

    def judged(*item_ids: str, fits: Callable[[Item], bool] = lambda item: True, asked: float = 0.0) -> str:
        items = tuple(RecommendedItem(item_id, -1.0, Source.DRAFTED) for item_id in item_ids)
        return traffic._wrong(Recommendations(items, 1, 1, 0, 0, "b", "1", 1.0, 1), ["h"], fits, asked)

    assert judged(*ids[:3]) == "" == judged(*ids, asked=100 + SHOWN_S - 1)
    assert "items twice" in judged(ids[0], ids[0]) and "of the history" in judged("h")
    assert judged("x") == "item x does not exist"
    assert "does not fit the rules" in judged(ids[0], fits=lambda item: item.price > 1e9)
    assert f"item {ids[3]} is gone for 31 s" in judged(*ids, asked=100 + SHOWN_S + 1)
