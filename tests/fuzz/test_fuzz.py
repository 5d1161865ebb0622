"""The short form of `make fuzz`; and that its runner finds what it is there to find."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Each in a target of its own, and what the runner has to say of it.
FAULTS = {
    "time.sleep(9)": "3 x longer than 0.2 s",
    "exec('while True: pass')": "3 x longer than 0.2 s",
    "np.ones(1 << 30, np.uint8)": "3 x more than 256 MiB",
    "open(folder / 'outside' / 'secret').close()": "3 x a file outside was read",
    "open(folder / 'link').close()": "3 x a file outside was read",
    "{}['a']": "3 x KeyError at <string>:",
    "refuse('it is wrong')": "3 x a message without '^history: '",
    "refuse('history: ' + 'a' * 5000)": "3 x a message of more than 110 lines or 2000 characters in one",
    "found('passed what is closed: 5')": "3 x Finding: passed what is closed",
    "refuse('history: 5 is wrong')": " 0 findings",
    "None": " 0 findings",
}
RUN = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from tests.fuzz import runner

runner.LONGEST_S, runner.MOST_BYTES = 0.2, 1 << 28
folder = Path(sys.argv[1])
(folder / "link").symlink_to("outside/secret")

def refuse(text):
    raise ValueError(text)

def found(text):
    raise runner.Finding(text)

for fault in sys.argv[2:]:
    @contextmanager
    def opened(scratch):
        yield lambda rng: eval(fault)

    result = runner.run(runner.Target("a target", opened, (ValueError,), says="^history: "), folder, 3, 9.0, "0")
    print(repr("\\n".join(result.lines())))
"""


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    """`python -m tests.fuzz`: in a process of its own, because it limits its memory and watches its files."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_nothing_hostile_is_found_wanting() -> None:
    done = fuzz("--inputs", "short")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inputs in" in done.stdout and ", 0 findings" in done.stdout


def test_a_seed_gives_the_same_input_again() -> None:
    done = fuzz("--target", "rules", "--seed", "0-1", "--seed", "0-2")
    assert done.returncode == 0 and done.stdout.startswith("rules ") and "        2 inputs" in done.stdout, done.stderr
    assert fuzz("--seed", "0-1").returncode == 2  # of which target?


def test_the_runner_finds_each_fault(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path), *FAULTS], cwd=ROOT, capture_output=True, text=True)
    said = [literal_eval(line) for line in done.stdout.splitlines()]
    assert len(said) == len(FAULTS), done.stderr
    for (fault, expected), lines in zip(FAULTS.items(), said, strict=True):
        assert expected in lines, (fault, lines)
