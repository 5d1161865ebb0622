"""What is said of a server that did not start: the first line names the cause, the server's own lines follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genrec.serving.triton.errors import TritonStartError
from genrec.serving.triton.process import ServerProcess

STAMP = "0102 03:04:05.678901 1234 file.cc:56] "
HARMLESS = f'I{STAMP}"loading: knowledge"'
FAILED = f"E{STAMP}\"failed to load 'knowledge': ValueError: items.parquet: is cut\\n\\nAt:\\n  model.py(7): check\""
TRACEBACK = 'Traceback (most recent call last):\n  File "launch.py", line 3\n    run()\nOSError: libb64 is missing'


def error_of(output: str, status: int, folder: Path) -> TritonStartError:
    """That of a process which prints `output` and ends."""
    (folder / "output").write_text(output + "\n")
    process = ServerProcess(
        ["/bin/sh", "-c", f"cat output; exit {status}"],
        os.environ,
        shm_prefix="genrec-test-start-error-",
        run_dir=folder / "run",
        grace=1.0,
        log_path=folder / "log",
    )
    process.wait(30)
    return process.start_error("ended before it was ready")


@pytest.mark.parametrize(
    ("output", "first", "others"),
    [
        (
            f"{HARMLESS}\n{FAILED}",
            "the Triton server ended before it was ready (exit status 3): failed to load 'knowledge': ValueError: "
            "items.parquet: is cut",
            ["At:", "  model.py(7): check"],
        ),
        (
            f"{HARMLESS}\n{TRACEBACK}",
            "the Triton server ended before it was ready (exit status 3): OSError: libb64 is missing",
            ["Traceback (most recent call last):", '  File "launch.py", line 3', "    run()"],
        ),
        (
            f"{FAILED}\nerror: creating server: Invalid argument",
            "the Triton server ended before it was ready (exit status 3): failed to load 'knowledge': ValueError: "
            "items.parquet: is cut",
            ["At:", "  model.py(7): check", "creating server: Invalid argument"],
        ),
        (HARMLESS, "the Triton server ended before it was ready (exit status 3)", [HARMLESS]),
    ],
    ids=["error line", "traceback", "last words", "no error line"],
)
def test_the_first_line_names_the_cause(
    output: str, first: str, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(output, 3, tmp_path)
    assert str(error).splitlines() == [first, *others, f"whole log: {tmp_path / 'log'}"]
    assert error.returncode == 3 and error.log == output.splitlines()
