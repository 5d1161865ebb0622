"""`genrec doctor` says what is wrong, and what to do; a running server's part is in tests/integration."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import CATALOG, Bundle
from genrec.cli.main import main
from genrec.doctor import machine
from genrec.doctor.bundle import bundle_findings
from genrec.doctor.finding import Finding, Verdict
from genrec.doctor.machine import machine_findings
from genrec.doctor.store import store_findings
from genrec.live.init import init_catalog
from genrec.live.store import CatalogStore
from genrec.serving.front import FrontError
from genrec.serving.triton import TritonNotFoundError


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def by_name(found: Any) -> dict[str, Finding]:
    return {one.name: one for one in found}


def test_a_machine_that_serves_has_nothing_wrong() -> None:
    found = [*machine_findings()]
    assert not [one for one in found if one.verdict is Verdict.WRONG]
    assert {"python", "triton", "front", "processor", "engines", "cores", "memory"} <= {one.name for one in found}
    assert all(one.found and bool(one.todo) == (one.verdict is not Verdict.OK) for one in found)


@pytest.mark.parametrize(
    ("name", "changed", "verdict", "words"),
    [
        ("triton", {"find_triton": raising(TritonNotFoundError("none here"))}, Verdict.WRONG, "none here"),
        ("front", {"find_haproxy": raising(FrontError("no HAProxy"))}, Verdict.WARNING, "no HAProxy"),
        ("processor", {"processor_line": lambda name: "sse2"}, Verdict.WARNING, "none of avx2"),
        ("engines", {"find_spec": lambda name: None}, Verdict.WRONG, "installed: none"),
        ("cores", {"usable_cores": lambda: 1}, Verdict.WARNING, "1 usable"),
        ("memory", {"available_memory": lambda: 99 << 20}, Verdict.WRONG, "99 MiB"),
    ],
)
def test_what_a_machine_lacks_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, changed: dict[str, Any], verdict: Verdict, words: str
) -> None:
    for attribute, value in changed.items():
        monkeypatch.setattr(machine, attribute, value)
    found = by_name(machine_findings())[name]
    assert found.verdict is verdict and words in found.found and found.todo


def test_shared_memory_and_open_files_are_looked_at(tmp_path: Path) -> None:
    found = by_name(machine_findings(tmp_path / "not there"))["shared memory"]
    assert found.verdict is Verdict.WRONG and "not there" in found.found
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = by_name(machine_findings())["files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.verdict is Verdict.WARNING and "512" in found.found


def test_a_damaged_bundle_is_named(bundle: Bundle, tmp_path: Path) -> None:
    assert {one.verdict for one in bundle_findings(bundle.path)} == {Verdict.OK}
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    damaged = next(path for path in sorted((copy / CATALOG).rglob("*")) if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (found,) = bundle_findings(copy)
    assert found.verdict is Verdict.WRONG and damaged.name in found.found


def test_a_bundle_that_does_not_fit_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec.doctor.bundle.available_memory", lambda: 1 << 20)
    found = by_name(bundle_findings(bundle.path))["memory"]
    assert found.verdict is Verdict.WRONG and "1 MiB" in found.found


def test_a_store_is_looked_at(bundle: Bundle, tmp_path: Path) -> None:
    location = str(tmp_path / "catalogue")
    init_catalog(bundle, location)
    CatalogStore.open(location).rollback(0)
    found = [*store_findings(location, {})]
    assert {one.verdict for one in found} == {Verdict.OK}
    assert "version 1" in by_name(found)["age"].found
    entry = tmp_path / "catalogue" / "_delta_log" / f"{1:020}.json"
    entry.write_bytes(entry.read_bytes()[:40])
    wrong = [one for one in store_findings(location, {}) if one.verdict is Verdict.WRONG]
    assert wrong and all(one.todo for one in wrong)


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    (found,) = store_findings(str(tmp_path / "nothing"), {})
    assert found.verdict is Verdict.WRONG and "nothing" in found.found


def test_the_command_ends_with_what_was_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["doctor", *map(str, words)])
        return code, *capsys.readouterr()

    code, shown, said = run(tmp_path / "no-bundle")
    assert code == 1 and "machine cores" in shown and "-> build it again" in shown
    assert said.startswith("error: ") and "no-bundle" in said
    code, shown, said = run("--store", tmp_path / "nothing", "--json")
    (found,) = json.loads(shown)
    assert code == 1 and found["subject"] == "store" and found["verdict"] == "wrong" and found["todo"]
    code, shown, said = run("--server", "127.0.0.1:1")
    assert code == 1 and "server ready" in said and "machine" not in shown
    assert run("--metrics", "http://localhost:8002/metrics")[0] == 2
