"""A file of rules: read in both forms, checked before anything starts, and told by its place when it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genrec.rules import parse, schema
from genrec.serving.repository import Deployment
from tests.unit.rules.shops import KINDS

Run = Callable[..., tuple[int, str]]
YAML = """\
where:
  all:
    - {attribute: category, in: [shoes, größe]}
    - {attribute: price, <: 50, ">=": 1.5}
    - not: {attribute: released, <: 2026-01-01}
    - {attribute: in_stock, is: yes}
at_most: [{attribute: category, items: 2}]
deny: ["4711"]
"""
JSON = {
    "where": {
        "all": [
            {"attribute": "category", "in": ["shoes", "größe"]},
            {"attribute": "price", "<": 50, ">=": 1.5},
            {"not": {"attribute": "released", "<": "2026-01-01"}},
            {"attribute": "in_stock", "is": True},
        ]
    },
    "at_most": [{"attribute": "category", "items": 2}],
    "deny": ["4711"],
}


class Started(Exception):
    """A server would start."""


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bundle has the shop's attributes."""
    monkeypatch.setattr("genrec.bundle.Bundle", lambda path: SimpleNamespace(catalog=SimpleNamespace(kinds=KINDS)))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Deployment]:
    """The deployment that `genrec serve` with these words would start."""
    from genrec.cli.main import main

    def prepare(bundle: Path, deployment: Deployment, *more: Any, **options: Any) -> None:
        raise Started(deployment)

    monkeypatch.setattr("genrec.serving.serve.prepare_server", prepare)

    def serve(*words: object) -> Deployment:
        with pytest.raises(Started) as started:
            main(["serve", "bundle", *map(str, words)])
        return started.value.args[0]

    return serve


def written(folder: Path, text: str, name: str = "rules.yaml") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


@pytest.mark.parametrize(("name", "text"), [("rules.yaml", YAML), ("rules.json", json.dumps(JSON)), ("rules", YAML)])
def test_both_forms_of_a_file_mean_the_same(
    name: str, text: str, tmp_path: Path, served: Callable[..., Deployment]
) -> None:
    deployment = served("--rules", written(tmp_path, text, name), "--rules-memory-mb", 64)
    assert parse(deployment.rules) == parse(json.dumps(JSON))
    assert deployment.rules.isascii()  # Triton starts Python in the C locale
    assert deployment.rules_memory_mb == 64


def test_rules_that_say_nothing_are_none(tmp_path: Path, served: Callable[..., Deployment]) -> None:
    assert served("--rules", written(tmp_path, "{}")).rules == ""
    assert served() == Deployment()


def test_the_attributes_of_a_live_catalogue_are_not_the_bundles(
    tmp_path: Path, served: Callable[..., Deployment]
) -> None:
    file = written(tmp_path, "where: {attribute: brand, is: x}")
    assert "brand" in served("--rules", file, "--catalog", tmp_path, "--catalog-cache", tmp_path).rules


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the whole: is no object, got None"),
        ("shoes", "the whole: is no object, got 'shoes'"),
        ("were: 1", "were: is unknown; known here are allow"),
        ("where: {attribute: price, <: [1]}", "where.<: is no number and no text, got [1]"),
        ("allow: [4711]", "allow[0]: is no text, got 4711"),
        (
            "where: {attribute: brand, is: x}",
            "where.attribute: attribute 'brand' is unknown; the catalogue's attributes",
        ),
        ("where: {attribute: category, is: no}", "where.is: False is not text"),
        ("explain: true", "explain: is true; leave it out, and let a request ask for it"),
        ("deny: [a]\ndeny: [b]", "line 1, column 1: 'deny' stands twice in one place; join the two"),
        ("where:\n  attribute: price\n  >: 5", "line 3, column 4: expected chomping"),
        ("where: {attribute: price, >=: 5}", '">" and ">=" in quotes'),
        ("a: [1", "line 1, column 6: expected ',' or ']'"),
        ("? [a]\n: b", "unhashable type"),
        ("a: &a [*a]", "recursive"),
        ("deny: [!!binary YQ==]", "b'a' is a bytes, which rules do not have"),
        ("deny: [!!python/object:os.system x]", "could not determine a constructor"),
        ("boost: [{attribute: price, times: .inf}]", "Out of range float"),
        ("deny: [\x07]", "unacceptable character"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    text: str, says: str, tmp_path: Path, run_genrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("genrec.serving.serve.prepare_server", "genrec.serving.repository.render_repository"):
        monkeypatch.setattr(name, lambda *arguments, **options: pytest.fail("starts"))
    file = written(tmp_path, text)
    for words in (["serve", "bundle"], ["render", "bundle", tmp_path / "out"]):
        status, stderr = run_genrec(*words, "--rules", file)
        assert (status, stderr.count("\n")) == (1, 1), stderr
        assert stderr.startswith(f"error: {file}: ") and says in stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"deny": ["a"], "deny": ["b"]}', "'deny' stands twice"),
        (b"{", "Expecting property name"),
        (b'{"deny": ["\xff"]}', "can't decode byte"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_json_that_cannot_be_read_is_told_by_its_file(
    content: bytes, says: str, tmp_path: Path, run_genrec: Run
) -> None:
    file = tmp_path / "rules.json"
    file.write_bytes(content)
    status, stderr = run_genrec("serve", "bundle", "--rules", file)
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith(f"error: {file}: cannot be read: ") and says in stderr


def test_a_repository_is_rendered_with_rules(tmp_path: Path, run_genrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = []
    monkeypatch.setattr(
        "genrec.serving.repository.render_repository", lambda bundle, out, deployment: deployments.append(deployment)
    )
    assert run_genrec("render", "bundle", tmp_path / "out", "--rules", written(tmp_path, YAML))[0] == 0
    assert parse(deployments[0].rules) == parse(json.dumps(JSON))


def test_the_schema_is_the_published_one(capsys: pytest.CaptureFixture[str]) -> None:
    from genrec.cli.rules import schema as print_schema

    print_schema()
    assert json.loads(capsys.readouterr().out) == schema()


def test_a_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genrec.cli.rules import check

    file = written(tmp_path, YAML)
    check(file)
    assert capsys.readouterr().out == f"ok: {file} says deny, where, at_most\n"
    check(file, Path("bundle"))
    assert capsys.readouterr().out.endswith(", fits the attributes of bundle\n")
    check(written(tmp_path, "explain: true"))
    assert "note: `genrec serve --rules` refuses explain" in capsys.readouterr().out
    check(written(tmp_path, "{}"))
    assert "says nothing" in capsys.readouterr().out
    foreign = written(tmp_path, "where: {attribute: brand, is: x}")
    check(foreign)
    with pytest.raises(ValueError, match=rf"{foreign}: where.attribute: attribute 'brand' is unknown"):
        check(foreign, Path("bundle"))
