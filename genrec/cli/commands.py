"""The command line from the commands that installed packages bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer

HELP = "Builds, checks, evaluates and serves bundles."
# Commands in the order of `genrec --help`, and the package that brings each. A dot separates a group from its command.
OWN, BUILDERS = "genrec-triton", "genrec-builders"
COMMANDS = {
    "demo": BUILDERS,
    "demo-shop": BUILDERS,
    "build": BUILDERS,
    "check": OWN,
    "serve": OWN,
    "render": OWN,
    "plan": OWN,
    "evaluate": BUILDERS,
    "compare": BUILDERS,
    "compare-report": BUILDERS,
    "export": BUILDERS,
    "export-tensorrt-llm": BUILDERS,
    "knowledge.build": BUILDERS,
    "knowledge.generate": OWN,
    "knowledge.grow": BUILDERS,
    "knowledge.demo": BUILDERS,
}
_GROUPS = {"knowledge": "Knowledge texts: make the folder of a knowledge model, and write texts with it."}


def build_app(commands: Mapping[str, Callable[[], Any]]) -> typer.Typer:
    """The command line of `commands`: by name, what loads each command's function.

    A command of `COMMANDS` that is not among them is there too; it says which package has it.
    """
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
    groups = {"": app}
    for name in dict.fromkeys([*COMMANDS, *commands]):
        group, _, leaf = name.rpartition(".")
        if group not in groups:
            groups[group] = typer.Typer(no_args_is_help=True, help=_GROUPS.get(group))
            app.add_typer(groups[group], name=group)
        if name in commands:
            groups[group].command(leaf)(commands[name]())
        else:
            _add_missing(groups[group], leaf, COMMANDS[name])
    return app


def _add_missing(app: typer.Typer, name: str, package: str) -> None:
    """A command that is not installed, under its name: it names the package that has it."""

    def missing() -> NoReturn:
        raise ValueError(f"`genrec {name}` is not installed: it comes with {package}, `pip install {package}`")

    takes_anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help=f"Not installed: comes with {package}.", context_settings=takes_anything)(missing)
