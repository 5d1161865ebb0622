"""Every file of `examples/` runs as its docstring says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.serving.triton import TritonServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *words: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def items_of(bundle: Bundle, count: int) -> list[str]:
    return [item_id.decode() for item_id in bundle.catalog.item_ids[:count].tolist()]


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run\("([a-z_]+\.py)"', Path(__file__).read_text()))
    assert tested == {file.name for file in EXAMPLES.glob("*.py")}


def test_local(bundle: Bundle) -> None:
    lines = run("local.py", str(bundle.path), *items_of(bundle, 3)).splitlines()
    assert len(lines) == 5 and all(re.fullmatch(r"\S+  -\d+\.\d{3}", line) for line in lines)


def test_client(bundle: Bundle, server: TritonServer) -> None:
    shown = run("client.py", server.grpc_url, *items_of(bundle, 3))
    assert shown.count("drafted") + shown.count("fallback") == 5 and shown.endswith("3 users answered\n")


@pytest.mark.training
def test_own_data(tmp_path: Path) -> None:
    shown = run("own_data.py", str(tmp_path))
    hit = float(re.search(r"Hit@10 ([\d.]+)", shown)[1])
    assert hit > 0.2, shown  # ten of 300 items at random would be 0.03
    Bundle(tmp_path / "bundle").check()


@pytest.mark.training
def test_own_checkpoint(tmp_path: Path) -> None:
    shown = run("own_checkpoint.py", str(tmp_path))
    assert re.search(r"recommended: (\S+, ){4}\S+", shown), shown
    assert Bundle(tmp_path / "bundle").layout.prefix == (1,)  # the checkpoint's own begin token
