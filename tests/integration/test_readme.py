"""The README's commands, run in order as they stand there, on small data; and its make targets."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# What makes a command small enough for a test; nothing else of it is changed.
SMALLER = {
    "genrec demo-shop": "--items 400 --users 400",
    "genrec build": "--levels 16,16,16 --hidden-size 32 --layers 2 --evaluate-users 50",
    "genrec compare": "--users 50 --beam-widths 20",
}


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", README, flags=re.S | re.M)
    lines = [line.split("  #")[0].split("   ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("genrec ", "genrec-client "))]


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).with_name(words[0]))
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def in_the_background(command: str, folder: Path):
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).with_name(words[0]))
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: gRPC 127.0.0.1:8001, HTTP 127.0.0.1:8000"), line
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    if any(map(port_is_taken, (8000, 8001, 8002))):
        pytest.skip("a server runs on the default ports")
    listed = commands()
    assert [command.split()[1] for command in listed] == [
        "demo-shop", "build", "check", "evaluate", "export", "build", "compare", "export-tensorrt-llm", "plan",
        "serve", "recommend",
    ]  # fmt: skip
    with contextlib.ExitStack() as serving:
        for command in listed:
            small = next((f"{command} {more}" for start, more in SMALLER.items() if command.startswith(start)), command)
            if command.startswith("genrec serve"):
                serving.enter_context(in_the_background(small, tmp_path))
            else:
                shown = run(small, tmp_path)
        assert len(re.findall(r"drafted|fallback", shown, flags=re.I)) >= 5, shown
        python = re.search(r"^```python\n(.*?)^```", README, flags=re.S | re.M)
        assert python is not None
        snippet = subprocess.run([sys.executable, "-c", python[1]], capture_output=True, text=True, check=False)
        assert snippet.returncode == 0, snippet.stderr
    time.sleep(0.2)
    assert not port_is_taken(8001)


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", README))
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.M))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
