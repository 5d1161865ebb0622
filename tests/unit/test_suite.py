"""The tests' own promises: what imports nothing heavy, and what is not skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import SETTINGS
from tests.needs import missing

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "accelerate")
# Tests of what needs numpy and little else.
LIGHT = ("catalog", "prompt", "client", "bundle/test_faults.py", "test_verifier.py", "test_golden.py")

NOTE_IMPORTS = """
import sys
from pathlib import Path

def pytest_sessionfinish(session, exitstatus):
    found = [name for name in {heavy} if name in sys.modules]
    Path({out!r}).write_text(f"{{exitstatus:d}} {{session.testscollected}} {{found}}")
"""
NO_TRITON = """
from genrec.serving.triton import install

install.WHEEL, install.DEFAULT_PREFIX = "no-such-wheel", install.Path("/nowhere")
"""


def run_pytest(plugin: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, with `plugin`, the text of a module."""
    (folder / "plugin_of_this_test.py").write_text(plugin)
    # No server on PATH either.
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if "triton" not in part)
    environment = os.environ | {"PYTHONPATH": str(folder), "PATH": path, "GENREC_REQUIRE_ALL": ""} | variables
    command = [sys.executable, "-m", "pytest", "-p", "plugin_of_this_test", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_tests_of_what_only_needs_numpy_import_nothing_heavy(tmp_path: Path) -> None:
    plugin = NOTE_IMPORTS.format(out=str(tmp_path / "found"), heavy=HEAVY)
    rooms = [str(ROOT / "tests" / "unit" / name) for name in LIGHT]
    done = run_pytest(plugin, tmp_path, *rooms, "-m", "not training and not slow", "--hypothesis-profile=few")
    status, tests, found = (tmp_path / "found").read_text().split(" ", 2)
    assert status == "0", done.stdout
    assert int(tests) > 300 and found == "[]", found


def test_whoever_uses_a_trained_bundle_is_marked(tmp_path: Path) -> None:
    words = [str(ROOT / "tests" / "unit" / "test_golden.py"), "--collect-only"]
    everything, fast = (run_pytest("", tmp_path, *words, *more).stdout for more in ([], ["-m", "not training"]))
    assert "test_the_golden_request_has_a_query" in everything
    assert "test_the_golden_request_has_a_query" not in fast and "test_other_drafts_are_refused" in fast


def test_without_a_server_the_served_product_is_not_skipped_in_silence(tmp_path: Path) -> None:
    words = [str(ROOT / "tests" / "integration" / "test_contract.py"), "-k", "test_types_and_shapes"]
    silent = run_pytest(NO_TRITON, tmp_path, *words)
    assert silent.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no Triton server found" in silent.stderr and "pip install genrec-triton[triton]" in silent.stderr
    assert "pytest --without-triton" in silent.stderr
    said = run_pytest(NO_TRITON, tmp_path, *words, "--without-triton")
    assert said.returncode == 0 and "1 skipped" in said.stdout and "no Triton server found" in said.stdout
    required = run_pytest(NO_TRITON, tmp_path, *words, "--without-triton", GENREC_REQUIRE_ALL="1")
    assert required.returncode == pytest.ExitCode.USAGE_ERROR


def test_what_is_missing_is_skipped_and_in_ci_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENREC_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="openssl is not installed"):
        missing("openssl is not installed")
    monkeypatch.setenv("GENREC_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="openssl is not installed"):
        missing("openssl is not installed")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_kernels_of_a_setting_are_those_that_run(name: str) -> None:
    setting = SETTINGS[name]
    if setting.needs not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {setting.needs}")
    program = (
        "import torch, numpy; from threadpoolctl import threadpool_info as pools\n"
        "blas = {(p['architecture'], p['num_threads']) for p in pools() if p['internal_api'] == 'openblas'}\n"
        "print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), *blas)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=setting.environment(), capture_output=True, text=True)
    expected = f"{setting.aten.upper()} {setting.threads} ('{setting.openblas}', {setting.threads})\n"
    assert done.stdout == expected, done.stderr
