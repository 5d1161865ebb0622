"""Checks that TensorRT-LLM has every name that genrec uses of it: `api.json` against its source, which is not run.

python -m genrec_builders.export.tensorrt_llm.api [SOURCE]

SOURCE: a checkout of its repository, or by default the installed package. Files move between releases, so an entry
may hold `from` one release on, or `before` another; the list as a whole does, too.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

LIST = Path(__file__).with_name("api.json")


@dataclass(frozen=True)
class Finding:
    """What became of one entry: where it was found, or what is wrong with it."""

    use: str
    name: str
    place: str = ""
    problem: str = ""


def check(source: Path, listed: dict[str, Any]) -> Iterator[Finding]:
    """Look every entry of `listed` for the release under `source` up there, the folder that holds `tensorrt_llm`.

    Where that names no release, it counts as the one that `listed` is for.
    """
    for entry in entries_of(listed, release_of(source)):
        name = _name_of(entry)
        files = [source / file for file in entry["files"] if (source / file).is_file()]
        if not files:
            yield Finding(entry["use"], name, problem=f"no file {' or '.join(entry['files'])}")
            continue
        text = files[0].read_text()
        problems, line = _problems(entry, ast.parse(text), text)
        place = f"{files[0].relative_to(source)}:{line}"
        yield Finding(entry["use"], name, place, "; ".join(problems))


def entries_of(listed: dict[str, Any], release: str) -> list[dict[str, Any]]:
    """The entries of `listed` that hold for a release, as "1.4.0rc1"; for its own if that is no number."""
    known = _numbers(release) or _numbers(listed["release"])
    return [entry for entry in listed["entries"] if _holds(entry, known)]


def holds_for(listed: dict[str, Any], release: str) -> bool:
    """Whether the list as a whole was read for that release."""
    return bool(_numbers(release)) and _holds(listed, _numbers(release))


def _holds(entry: dict[str, Any], release: tuple[int, ...]) -> bool:
    first, end = (_numbers(entry[name]) if name in entry else None for name in ("from", "before"))
    return (first is None or release >= first) and (end is None or release < end)


def _numbers(release: str) -> tuple[int, ...]:
    """(1, 4) of "1.4.0rc1"; () of what is no release."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return tuple(map(int, found.groups())) if found else ()


def release_of(source: Path) -> str:
    """The version that the source under `source` names; "unknown" if it names none."""
    file = source / "tensorrt_llm" / "version.py"
    found = re.search(r'__version__\s*=\s*"([^"]+)"', file.read_text()) if file.is_file() else None
    return found[1] if found else "unknown"


def installed() -> Path:
    """The folder that holds the installed package, which is not imported. Raises FileNotFoundError."""
    spec = importlib.util.find_spec("tensorrt_llm")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise FileNotFoundError("tensorrt_llm is not installed; name a checkout of its repository")
    return Path(spec.origin).parents[1]


def _name_of(entry: dict[str, Any]) -> str:
    owner = entry.get("class") or "/".join(entry.get("classes", ()))
    return ".".join(filter(None, (owner, entry.get("method") or entry.get("function")))) or Path(entry["files"][0]).name


def _problems(entry: dict[str, Any], tree: ast.Module, text: str) -> tuple[list[str], int]:
    """What the entry asks for and the file lacks, and the line where its class or function begins."""
    problems, line = [], 1
    owners = entry.get("classes") or [entry[key] for key in ("class",) if key in entry]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in owners]
    if owners and not classes:
        return [f"no class {' or '.join(owners)}"], 1
    if classes:
        line = classes[0].lineno
    if wanted := entry.get("method") or entry.get("function"):
        nodes = [node for owner in classes for node in owner.body] if classes else list(ast.walk(tree))
        functions = [
            node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == wanted
        ]
        if not functions:
            return [f"no {wanted}"], line
        line = functions[0].lineno
        taken = functions[0].args
        names = {one.arg for one in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)}
        names |= {"**"} if taken.kwarg else set()
        problems += [f"{wanted} has no parameter {name}" for name in entry.get("parameters", ()) if name not in names]
    members = {name for owner in classes for name in _members(owner)}
    for name in (*entry.get("fields", ()), *entry.get("properties", ())):
        if name not in members:
            problems.append(f"no {name}")
    problems += [f"does not say {piece!r}" for piece in entry.get("text", ()) if piece not in text]
    return problems, line


def _members(owner: ast.ClassDef) -> Iterator[str]:
    """Names that a class declares: annotated fields, assignments, functions."""
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name


def main(
    source: Annotated[Optional[Path], typer.Argument(help="A checkout; the installed package by default.")] = None,
) -> None:
    """Print where each name is, or that it is missing; exit status 1 if one is."""
    listed = json.loads(LIST.read_text())
    folder = source or installed()
    found = release_of(folder)
    typer.echo(f"TensorRT-LLM {found} in {folder}; genrec is written for {listed['release']}")
    if not holds_for(listed, found):
        typer.echo(f"the list holds for releases from {listed['from']} to before {listed['before']}: read it again")
    failed = 0
    for finding in check(folder, listed):
        failed += bool(finding.problem)
        state = f"FAIL {finding.problem}" if finding.problem else "ok  "
        typer.echo(f"{state} {finding.name} {finding.place}  ({finding.use})")
    total = len(entries_of(listed, found))
    typer.echo(f"FAIL: {failed} of {total} are missing or changed" if failed else f"pass: all {total} are there")
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
