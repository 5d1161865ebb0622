"""docs/checkpoints.md: each command of its examples prints what the page says, on checkpoints made by transformers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from genrec.cli.main import main
from tests.checkpoints import EXAMPLES

PAGE = (Path(__file__).parents[4] / "docs" / "checkpoints.md").read_text()
SHOWN = re.findall(r"^```\n\$ genrec (.+)\n((?:.+\n)+)```$", PAGE, flags=re.M)


def test_every_example_is_shown() -> None:
    assert {command.split()[2] for command, _ in SHOWN} == set(EXAMPLES)


@pytest.mark.parametrize(("command", "printed"), SHOWN, ids=[command.split()[2] for command, _ in SHOWN])
def test_an_example_prints_what_the_page_says(
    command: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    EXAMPLES[words[2]](tmp_path / words[2])
    capsys.readouterr()  # transformers' own
    monkeypatch.chdir(tmp_path)
    main(words)
    out, err = capsys.readouterr()
    assert out + err == printed
