"""The command line: which package brings which command, and what is said of one that is not installed."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from genrec.cli.commands import BUILDERS, COMMANDS, OWN, build_app
from genrec.cli.main import GROUP, app

INSTALLED = {entry.name: entry for entry in entry_points(group=GROUP)}


def words_of(name: str) -> list[str]:
    return name.split(".")


def test_every_command_is_brought_by_the_package_that_it_names() -> None:
    assert set(INSTALLED) == set(COMMANDS)
    for name, entry in INSTALLED.items():
        assert entry.dist is not None and entry.dist.name == COMMANDS[name], name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in words_of(name):
        command = command.commands[word]
    assert command.help and len(command.help) > 20
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text and len(text) > 8, f"{name} {parameter.name} has no help that helps: {text!r}"


def test_a_command_that_is_not_installed_names_its_package() -> None:
    own = build_app({name: entry.load for name, entry in INSTALLED.items() if COMMANDS[name] == OWN})
    listed = CliRunner().invoke(own, ["--help"])
    assert listed.exit_code == 0 and BUILDERS in listed.output
    for name in [name for name, package in COMMANDS.items() if package == BUILDERS]:
        done = CliRunner().invoke(own, [*words_of(name), "some", "--words"])
        assert isinstance(done.exception, ValueError)
        assert f"pip install {BUILDERS}" in str(done.exception) and name.rpartition(".")[2] in str(done.exception)


def test_a_command_of_another_package_joins() -> None:
    def hello(name: str) -> None:
        """Greet somebody."""
        print(f"hello {name}")

    extended = build_app({"hello": lambda: hello})
    assert "hello shop" in CliRunner().invoke(extended, ["hello", "shop"]).output
