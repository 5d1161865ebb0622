"""`genrec rules`, and the file of rules that `genrec serve` and `genrec render` take."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from genrec.rules import Rules

RulesFile = Annotated[
    Optional[Path],
    typer.Option(
        "--rules", help="YAML or JSON with rules that hold for every request; `genrec rules schema` has more."
    ),
]


def schema() -> None:
    """Print the JSON schema of rules, for editors and for checks of your own."""
    from genrec.rules import schema

    typer.echo(json.dumps(schema(), indent=2))


def check(
    file: Annotated[Path, typer.Argument(help="Rules in YAML, or in JSON if the name ends in .json.")],
    bundle: Annotated[
        Optional[Path], typer.Option(help="The bundle whose catalogue's attributes the rules have to fit.")
    ] = None,
) -> None:
    """Check a file of rules: its form, and whether it fits the attributes of a bundle."""
    rules, _ = read_rules(file)
    fits = ""
    if bundle is not None:
        require_fit(file, rules, bundle)
        fits = f", fits the attributes of {bundle}"
    said = ", ".join(rules.model_dump(exclude_defaults=True)) or "nothing"
    typer.echo(f"ok: {file} says {said}{fits}")
    if rules.explain:
        typer.echo("note: `genrec serve --rules` refuses explain; a request asks for it, in rules of its own")


def deployment_rules(file: Path, bundle: Path | None) -> str:
    """The rules of a file that hold for every request, as ASCII JSON; "" if they say nothing.

    bundle: whose attributes they have to fit; None if the catalogue is another one. Raises InvalidRequest that names
    the file, the place, the value and what to do, OSError, and BundleError.
    """
    from genrec.errors import InvalidRequest
    from genrec.rules import Rules

    rules, text = read_rules(file)
    if rules.explain:
        raise InvalidRequest(f"{file}: explain: is true; leave it out, and let a request ask for it in its own rules")
    if bundle is not None:
        require_fit(file, rules, bundle)
    return "" if rules == Rules() else text


def read_rules(file: Path) -> tuple[Rules, str]:
    """The rules of a file, and the same as ASCII JSON. Raises InvalidRequest that names the file, and OSError."""
    from genrec.errors import InvalidRequest
    from genrec.rules import parse

    try:
        text = file.read_text("utf-8")
        form = _from_json(text) if file.suffix == ".json" else _from_yaml(text)
        text = json.dumps(form, default=_as_text, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    return parse(text, str(file)), text


def require_fit(file: Path, rules: Rules, bundle_path: Path) -> None:
    """Raises InvalidRequest that names the file if its rules do not fit the attributes of a bundle."""
    from genrec.bundle import Bundle
    from genrec.rules import bind

    bind(rules, Bundle(bundle_path).catalog.kinds, str(file))


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _from_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Of a name that stands twice, YAML's own takes the last one, and says nothing."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            try:
                return _once(
                    (self.construct_object(key, True), self.construct_object(one, True)) for key, one in node.value
                )
            except (ValueError, TypeError) as error:  # a list cannot be a name
                raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f'{place}{error.problem}; write it as YAML, with ">" and ">=" in quotes') from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _once(pairs: Iterable[tuple[Any, Any]]) -> Mapping[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice in one place; join the two")
        found[name] = value
    return found


def _as_text(value: Any) -> str:
    """Times, which YAML reads by itself."""
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which rules do not have; give text, a number or a list")
