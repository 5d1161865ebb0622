"""The command line from the commands that installed packages bring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

HELP = "Builds, checks, evaluates and serves bundles."
# Commands in the order of `genrec --help`, and the package that brings each. A dot separates a group from its command.
OWN, BUILDERS = "genrec-triton", "genrec-builders"
COMMANDS = {
    "demo": BUILDERS,
    "demo-shop": BUILDERS,
    "data.check": BUILDERS,
    "build": BUILDERS,
    "checkpoint.check": BUILDERS,
    "check": OWN,
    "sign": OWN,
    "doctor": OWN,
    "serve": OWN,
    "render": OWN,
    "plan": OWN,
    "tune": OWN,
    "rules.check": OWN,
    "rules.schema": OWN,
    "catalog.init": OWN,
    "catalog.apply": OWN,
    "catalog.log": OWN,
    "catalog.rollback": OWN,
    "catalog.compact": OWN,
    "catalog.inspect": OWN,
    "evaluate": BUILDERS,
    "compare": BUILDERS,
    "compare-report": BUILDERS,
    "votes": BUILDERS,
    "export": BUILDERS,
    "export-tensorrt-llm": BUILDERS,
    "knowledge.build": BUILDERS,
    "knowledge.generate": OWN,
    "knowledge.grow": BUILDERS,
    "knowledge.demo": BUILDERS,
}
# No option means more: counts, sizes and seeds fit into uint32, and figures such as rates and prices stay far below.
LARGEST_INT, LARGEST_FLOAT = 2**32 - 1, 1e12
_GROUPS = {
    "catalog": "The live catalogue: items that change while a server answers.",
    "checkpoint": "Checkpoints to start a build from: what it would use of one, drop or refuse.",
    "data": "Datasets: what a build would make of a folder of yours.",
    "rules": "The rules of a shop: which items may be recommended, how many alike, and in which order.",
    "knowledge": "Knowledge texts: make the folder of a knowledge model, and write texts with it.",
}


class Command(TyperCommand):
    """A command that judges every value before it runs. What it refuses names the option, the value and the limit."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = self.make_parser(ctx).parse_args(args=list(args))[0]
        for parameter in self.params:
            if "" in _listed(typed.get(parameter.name)):
                raise typer.BadParameter(f"{_name_of(parameter)} '': must not be empty", ctx)
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is None or not error.message:  # no value at all: typer names what is missing
                raise
            said = ", ".join(repr(value) for value in _listed(typed.get(error.param.name)))
            reason = error.message[:1].lower() + error.message[1:]
            raise typer.BadParameter(f"{_name_of(error.param)} {said}: {reason}", ctx) from error
        for parameter in self.params:
            texts, values = (_listed(given.get(parameter.name)) for given in (typed, ctx.params))
            for text, value in zip(texts, values, strict=False):
                if (problem := _number_problem(value)) is not None:
                    raise typer.BadParameter(f"{_name_of(parameter)} {text!r}: {problem}", ctx)
        return rest


def _listed(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, (list, tuple)) else (value,)


def _name_of(parameter: Any) -> str:
    """As it is typed: an option's longest name, or an argument's."""
    return max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name


def _number_problem(value: Any) -> str | None:
    """What is wrong with the value if it is a number that no option can mean."""
    if isinstance(value, float) and not math.isfinite(value):
        return "give a finite number"
    if isinstance(value, (int, float)):
        largest = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
        if value > largest:
            return f"must be at most {largest:g}" if isinstance(value, float) else f"must be at most {largest}"
    return None


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
            groups[group].command(leaf, cls=Command)(commands[name]())
        else:
            _add_missing(groups[group], leaf, COMMANDS[name])
    return app


def _add_missing(app: typer.Typer, name: str, package: str) -> None:
    """A command that is not installed, under its name: it names the package that has it."""

    def missing() -> NoReturn:
        raise ValueError(f"`genrec {name}` is not installed: it comes with {package}, `pip install {package}`")

    takes_anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help=f"Not installed: comes with {package}.", context_settings=takes_anything)(missing)
