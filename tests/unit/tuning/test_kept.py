"""What was measured is found again for the same bundle on the same machine only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genrec.bundle import MANIFEST, Bundle
from genrec.tuning.choices import Choice, Measured, Wanted
from genrec.tuning.kept import Tuned


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def measured(threads: int, p50_ms: float = 5.0) -> Measured:
    choice = Choice(engine="onnx", precision="f32", threads=threads, instances=1)
    return Measured(choice=choice, p50_ms=p50_ms, p95_ms=6.0, p99_ms=7.0, requests_per_s=100.0)


def test_it_is_found_again(bundle: Bundle, cache: Path) -> None:
    assert Tuned.load(bundle.path, 2) is None
    tuned = Tuned.now(bundle.path, 2, [measured(2)])
    path = tuned.save()
    assert path.is_relative_to(cache) and bundle.manifest.bundle_version in path.name
    assert Tuned.load(bundle.path, 2) == tuned and Tuned.load(bundle.path, 3) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_newer_measurements_stand_before_older_ones_of_other_choices(bundle: Bundle) -> None:
    Tuned.now(bundle.path, 2, [measured(2), measured(1)]).save()
    tuned = Tuned.now(bundle.path, 2, [measured(1, 4.0)])
    assert tuned.measured == [measured(1, 4.0), measured(2)]
    assert tuned.of(Wanted(threads=1)) == [measured(1, 4.0)]


def test_another_bundle_or_machine_has_its_own(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tuned.now(bundle.path, 2, [measured(2)]).save()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(bundle.path / MANIFEST, other)
    assert Tuned.load(other, 2) is not None  # a copy is the same bundle
    (other / MANIFEST).write_text((other / MANIFEST).read_text() + "\n")
    assert Tuned.load(other, 2) is None
    monkeypatch.setattr("genrec.tuning.kept.processor_line", lambda name: "fpu sse")
    assert Tuned.load(bundle.path, 2) is None


def test_a_file_that_cannot_be_used_is_named(bundle: Bundle) -> None:
    path = Tuned.now(bundle.path, 2, [measured(2)]).save()
    path.write_text('{"measured": 1}')
    with pytest.raises(ValueError, match=r"is not what `genrec tune` writes; remove it") as found:
        Tuned.load(bundle.path, 2)
    assert str(path) in str(found.value)
