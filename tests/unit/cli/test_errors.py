"""How commands end on wrong values: every command and every option of the app, with wrong values of its type.

Status 2 for a value that is wrong whatever it meets, 1 for what a command meets, and one line that names the option
or path and the value. A traceback is for defects alone.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from genrec.bundle import Bundle
from genrec.cli import main as command_line
from genrec.cli.commands import COMMANDS, build_app
from genrec.cli.main import GROUP, app, main

Run = Callable[..., tuple[int, str]]
# Text arguments that a command cannot do without, and that are no path: a right value.
RIGHT = {("compare", "model"): "model={missing}"}
WRONG_TEXTS = ["no such value", "8,8,x", "1,1", "<{code}>", "-1", "nan", "a=b"]
WRONG_NUMBERS = ["x", "1e", "nan", "inf", "-inf", "-1", "0", "1000000000000000", "1e300"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: its exit status, and what it wrote to standard error."""

    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        return status, capfd.readouterr().err

    return call


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command. names: as it is typed. kind: int, float, str, bool or Path."""

    command: str
    name: str
    names: tuple[str, ...]
    kind: type
    required: bool
    least: float | None

    @property
    def is_argument(self) -> bool:
        return not self.names[0].startswith("-")

    def words(self, value: str) -> list[str]:
        if self.is_argument:
            return ["--", value] if value.startswith("-") else [value]
        return [f"{self.names[0]}={value}"]


def parameters_of(command: str) -> list[Parameter]:
    """All that a command takes, from the app itself."""
    found: Any = typer.main.get_command(app)
    for word in command.split("."):
        found = found.commands[word]
    hints = get_type_hints(INSTALLED[command].load(), include_extras=True)
    parameters = []
    for parameter in found.params:
        if parameter.name == "help":
            continue
        hint, info = get_args(hints[parameter.name])[:2] if get_origin(hints[parameter.name]) is Annotated else ()
        kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
        opts = (*parameter.opts, *parameter.secondary_opts)
        parameters.append(Parameter(command, parameter.name, opts, kinds[0], parameter.required, info.min))
    return parameters


INSTALLED = {entry.name: entry for entry in entry_points(group=GROUP)}
PARAMETERS = [parameter for command in COMMANDS for parameter in parameters_of(command)]


@dataclass(frozen=True)
class Places:
    """Paths of each kind. blocked: one below a file, so that nothing can be read from there, nor written to."""

    missing: Path
    file: Path
    folder: Path
    blocked: Path


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "file.txt").write_text("a file of somebody else\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work\n")
    return Places(
        tmp_path / "missing", tmp_path / "file.txt", tmp_path / "folder", tmp_path / "file.txt" / "below a file"
    )


def words_with(parameter: Parameter, value: str, places: Places) -> list[str]:
    """The command with this value, and every other path one that cannot be used: no command gets to work."""
    options, arguments = [], []
    for other in parameters_of(parameter.command):
        if other.name == parameter.name:
            chosen = value
        elif other.kind is Path:
            chosen = str(places.blocked)
        elif other.required and other.kind is str:
            chosen = RIGHT[parameter.command, other.name].format(missing=places.blocked)
        elif other.required:
            chosen = str(max(1, other.least or 0))
        else:
            continue
        (arguments if other.is_argument else options).extend(other.words(chosen))
    return [*parameter.command.split("."), *options, *arguments]


def wrong_values(parameter: Parameter, places: Places) -> Iterator[tuple[str, bool | None]]:
    """Values, and whether each is wrong in itself; None if only the command knows."""
    if parameter.kind is Path:
        yield from [("", True), (str(places.missing), None), (str(places.file), None), (str(places.folder), None)]
    elif parameter.kind is bool:
        yield "yes", True
    elif parameter.kind is str:
        yield from [("", True), *((text, None) for text in WRONG_TEXTS)]
    else:
        yield "", True
        for text in WRONG_NUMBERS:
            try:
                number = parameter.kind(text)
            except ValueError:
                yield text, True
            else:
                below = number < 0 or (parameter.least is not None and number < parameter.least)
                yield text, True if below or not math.isfinite(number) or number > 1e12 else None


def plain(text: str) -> str:
    """Names are compared as words: --beam-width, beam_width and beam width are one."""
    return re.sub(r"[-_ ]+", " ", text.lower())


def assert_refused(status: int, stderr: str, words: list[str], places: Places) -> None:
    said = [line for line in stderr.splitlines() if line.strip()]
    assert status in (1, 2), (words, status, stderr)
    assert len(said) == 1 and said[0].startswith("error: "), (words, stderr)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: f"{parameter.command} {parameter.name}")
def test_wrong_values_end_in_one_line_that_names_them(parameter: Parameter, places: Places, run: Run) -> None:
    paths = [str(path) for path in vars(places).values()]
    problems = []
    for value, is_wrong in wrong_values(parameter, places):
        words = words_with(parameter, value, places)
        try:
            status, stderr = run(*words)
        except Exception as error:
            problems.append((words, repr(error)))
            continue
        said = [line for line in stderr.splitlines() if line.strip()]
        if len(said) != 1 or not said[0].startswith("error: "):
            problems.append((words, status, "not one line", stderr))
            continue
        named = any(plain(name).strip() in plain(said[0]) for name in (*parameter.names, parameter.name))
        if status == 2:
            good = named and (value in said[0] or (parameter.kind is bool and is_wrong))
        else:
            good = status == 1 and not is_wrong and any(path in said[0] for path in paths)
        if not good:
            problems.append((words, status, said[0]))
    assert not problems, "\n".join(map(str, problems))
