"""What README.md and docs/usage.md show is run as it stands there, in order, on small data."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genrec.bundle import Bundle

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/usage.md")
# What makes a command small enough for a test; nothing else of it is changed.
SMALLER = {
    "genrec demo-shop": "--items 400 --users 400",
    "genrec build": "--levels 16,16,16 --hidden-size 64 --heads 1 --layers 2 --epochs 1 --evaluate-users 50",
    "genrec compare": "--users 50 --beam-widths 20",
}
READY = "ready: gRPC 127.0.0.1:8001, HTTP 127.0.0.1:8000"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks that are run: language ("" for commands) and text. Blocks marked `text` are for reading."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M)
    return [(language, text) for language, text in found if language != "text"]


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def serving(words: list[str], folder: Path) -> Iterator[None]:
    process = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(READY), line
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def run_command(line: str, folder: Path, stack: contextlib.ExitStack) -> None:
    """Run one line of a page; what it starts in the foreground stays until `stack` ends."""
    more = next((f" {words}" for start, words in SMALLER.items() if line.startswith(start)), "")
    words = shlex.split(line + more)
    if words[0] == "make":  # CI runs `make demo` and `make test` themselves: a test cannot run the tests
        run([*words[:1], "--dry-run", *words[1:]], ROOT)
    elif line == ". .venv/bin/activate":
        pass
    elif line.startswith("genrec serve"):
        stack.enter_context(serving(words, folder))
    elif words[0] in ("genrec", "genrec-client"):
        shown = run(words, folder)
        if words[0] == "genrec-client":
            assert len(re.findall(r"drafted|fallback", shown, flags=re.I)) >= 5, shown
    else:
        pytest.fail(f"no test knows how to run {line!r}: teach this one, or mark the block `text`")


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page: str, bundle: Bundle, tmp_path: Path) -> None:
    assert not any(map(port_is_taken, (8000, 8001, 8002))), "a server runs on the default ports: stop it"
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "shop-bundle").symlink_to(bundle.path)  # what `make demo` leaves
    found = blocks(page)
    assert {"", "python"} <= {language for language, _ in found} <= {"", "python", "yaml"}
    for text in (text for language, text in found if language == "yaml"):
        (tmp_path / "rules.yaml").write_text(text)  # rules of a shop, which commands name
    (tmp_path / "rules.json").write_text('{"at_most": [{"attribute": "brand", "items": 2}]}')
    with contextlib.ExitStack() as stack:
        for language, text in found:
            if language == "python":
                assert run([sys.executable, "-c", text], tmp_path).strip()
                continue
            if language == "yaml":
                continue
            for line in text.splitlines():
                if command := re.split(r"\s{2,}#", line)[0].strip():
                    run_command(command, tmp_path, stack)


def test_the_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("client/*.md")]
    named = {target for page in pages for target in re.findall(r"`make ([a-z][a-z0-9-]*)", page.read_text())}
    assert {"demo", "test"} < named and named <= targets, named - targets
