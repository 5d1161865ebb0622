"""Pages keep their form, their links lead somewhere, and what they list is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import griffe
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.hooks.prose import Prose

ROOT = Path(__file__).parents[2]
GUIDES = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("docs/reference/*.md")) + [ROOT / "client/README.md"]
HABITS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "THIRD_PARTY.md")]
PAGES = [*GUIDES, *HABITS, ROOT / "README.md", ROOT / "builders/README.md"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize("page", [*GUIDES, *HABITS], ids=name_of)
def test_a_page_starts_with_what_the_reader_can_do_after_it(page: Path) -> None:
    assert re.match(r"# .+\n\nAfter this page you ", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_has_short_lines(page: Path) -> None:
    lines = [line for line in without_code(page).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 140] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", without_code(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_inner_lists_are_indented_as_the_site_needs_it(page: Path) -> None:
    """By four spaces in a numbered list: GitHub takes three as well, Python-Markdown does not."""
    assert re.findall(r"^ {1,3}(?:[-*]|\d+\.) .*", without_code(page), flags=re.M) == []


def test_make_help_lists_every_target() -> None:
    declared = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), flags=re.M)
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert sorted(re.findall(r"^  ([\w-]+) +\S", shown, flags=re.M)) == sorted(" ".join(declared).split())


def installed_with(package: str, extras: frozenset[str], found: dict[str, str]) -> dict[str, str]:
    """`found` and everything that `package` brings with its extras: versions by canonical name."""
    for line in requires(package) or []:
        needed = Requirement(line)
        if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        name = canonicalize_name(needed.name)
        if name not in found or needed.extras:
            found[name] = version(name)
            installed_with(name, frozenset(needed.extras), found)
    return found


@pytest.fixture
def serving() -> dict[str, str]:
    """What the CPU image installs: versions by canonical name."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the images' Python is 3.11, and others need other packages")
    extras = frozenset({"serve", "query", "triton", "catalog", "openvino", "signing"})
    installed = installed_with("genrec-triton", extras, {})
    del installed["genrec-client"]  # of this project
    return installed


def test_third_party_lists_what_serving_installs(serving: dict[str, str]) -> None:
    rows = re.findall(r"^\| ([\w.-]+) +\| (\d[\w.]*) +\|", (ROOT / "THIRD_PARTY.md").read_text(), flags=re.M)
    assert {canonicalize_name(name): number for name, number in rows} == serving


def test_the_image_is_locked_with_hashes_at_the_versions_that_are_tested(serving: dict[str, str]) -> None:
    """After a change of constraints.txt or of what serving needs: `make lock-image`."""
    locked = (ROOT / "k8s/images/cpu/requirements.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.+!-]+)", (ROOT / "constraints.txt").read_text(), re.M))
    found = {}
    for block in re.split(r"\n(?=\S)", locked.strip()):
        line = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.+!-]+) \\\n", block)
        assert line and re.fullmatch(r"( +--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", block[line.end() :]), block[:80]
        found[canonicalize_name(line[1])] = line[2]
        assert pinned[line[1]] == line[2], line[1]
    assert found == serving


def test_the_reference_shows_each_parameter_on_a_line_of_its_own() -> None:
    docstring = "Verify a batch.\n\ncodes: int64 [B] [K], see `codes: [B]`. top_k: int [B]. Raises ValueError."
    function = griffe.Function("verify", parameters=griffe.Parameters(griffe.Parameter("codes")))
    function.parameters.add(griffe.Parameter("top_k"))
    function.docstring = griffe.Docstring(docstring, parent=function)
    Prose().on_object(obj=function)
    assert function.docstring.value == (
        "Verify a batch.\n\n  \n**codes**: int64 \\[B\\] \\[K\\], see `codes: [B]`."
        "  \n**top_k**: int \\[B\\].  \nRaises ValueError."
    )
