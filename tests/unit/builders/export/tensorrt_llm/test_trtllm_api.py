"""The list of TensorRT-LLM's names: complete for our code, and a check that finds each change."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import genrec_builders.export.tensorrt_llm.api as api
from genrec.engines.tensorrt_llm.contract import RELEASE
from genrec_builders.export.tensorrt_llm.export import TensorRtLlmConfig

ROOT = Path(__file__).parents[5]
LISTED = json.loads(api.LIST.read_text())
ENTRIES = LISTED["entries"]


def test_the_list_is_for_the_release_that_the_code_names() -> None:
    assert LISTED["release"] == RELEASE
    for entry in ENTRIES:
        assert entry["read"], entry
        assert {"files", "use", "read"} < entry.keys()


def test_every_import_is_listed() -> None:
    listed = {(Path(file).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", "."), name)
              for entry in ENTRIES for file in entry["files"]
              for name in (entry.get("class"), entry.get("function"), *entry.get("text", ()))}  # fmt: skip
    found = set()
    for path in [*ROOT.glob("genrec/**/*.py"), *ROOT.glob("model_repository/**/*.py"), *ROOT.glob("builders/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            typing_only = isinstance(node, ast.ImportFrom) and node.module in (
                "tensorrt_llm._torch.attention_backend", "tensorrt_llm._torch.model_config",
            )  # fmt: skip
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tensorrt_llm":
                found |= set() if typing_only else {(node.module, alias.name) for alias in node.names}
    assert len(found) >= 5
    assert found <= listed


def test_every_argument_is_listed(stand_in: Any) -> None:
    fields = {entry["use"]: set(entry.get("fields", ())) for entry in ENTRIES}
    arguments = TensorRtLlmConfig(cuda_graphs=True).arguments(64)
    assert arguments.keys() <= fields["llm_args.yaml"]
    assert arguments["kv_cache_config"].keys() <= fields["kv_cache_config of llm_args.yaml"]
    assert arguments["cuda_graph_config"].keys() <= fields["cuda_graph_config of llm_args.yaml"]
    sampled = set(inspect.signature(stand_in.SamplingParams).parameters)
    assert sampled == fields["what a request asks for"]
    from tensorrt_llm import llm

    taken = llm._ARGUMENTS.keys() - {"encode_only"}  # newer than `RELEASE`, with an entry of its own
    assert taken == fields["llm_args.yaml"], "the test double takes what the real one takes"
    assert llm._KV_CACHE.keys() == fields["kv_cache_config of llm_args.yaml"]


def source_of(folder: Path, release: str) -> Path:
    """A source tree that has what the list asks for of a release and nothing else."""
    write_tree(folder, api.entries_of(LISTED, release))
    (folder / "tensorrt_llm" / "version.py").write_text(f'__version__ = "{release}"\n')
    return folder


def write_tree(folder: Path, entries: list[dict[str, Any]]) -> None:
    files: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        owner = entry.get("class") or (entry["classes"][0] if "classes" in entry else "")
        lines = files.setdefault(entry["files"][0], {}).setdefault(owner, [])
        if name := entry.get("method") or entry.get("function"):
            taken = [part.replace("**", "**kwargs") for part in entry.get("parameters", ["self"])]
            lines.append(f"def {name}({', '.join(taken)}): ...")
        lines += [f"{name}: int = 0" for name in entry.get("fields", ())]
        lines += [f"@property\n    def {name}(self): ..." for name in entry.get("properties", ())]
        lines += [f"# {piece}" for piece in entry.get("text", ())]
    for file, classes in files.items():
        text = []
        for owner, lines in classes.items():
            text += [f"class {owner}:", *(f"    {line}" for line in lines), "    pass"] if owner else lines
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("\n".join(text) + "\n")


@pytest.mark.parametrize("release", ["1.2.1", "1.3.0rc29", "1.4.0rc1"])
def test_a_source_with_everything_passes(tmp_path: Path, release: str) -> None:
    source = source_of(tmp_path, release)
    findings = list(api.check(source, LISTED))
    assert len(findings) == len(api.entries_of(LISTED, release)) < len(ENTRIES)
    assert not [finding for finding in findings if finding.problem]
    assert all(finding.place.rpartition(":")[2].isdigit() for finding in findings)
    result = CliRunner().invoke(_app(), [str(source)])
    assert result.exit_code == 0
    assert f"TensorRT-LLM {release}" in result.output and f"pass: all {len(findings)} " in result.output
    assert "read it again" not in result.output


def test_files_that_moved_are_looked_for_where_the_release_has_them(tmp_path: Path) -> None:
    source = source_of(tmp_path, "1.3.0")
    (source / "tensorrt_llm" / "version.py").write_text('__version__ = "1.4.0"\n')
    missing = {finding.use for finding in api.check(source, LISTED) if finding.problem}
    assert missing == {"the packed batch, in 1.4", "a context's position_ids begin where its cached tokens end, in 1.4"}


@pytest.mark.parametrize(("release", "holds"), [("1.1.0", False), ("1.2.0rc2", True), ("1.5.0", False), ("?", False)])
def test_the_check_says_which_releases_the_list_was_read_for(tmp_path: Path, release: str, holds: bool) -> None:
    source = source_of(tmp_path, release)
    said = CliRunner().invoke(_app(), [str(source)]).output
    assert api.holds_for(LISTED, release) == holds
    assert ("the list holds for releases from 1.2 to before 1.5: read it again" in said) != holds


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["use"][:30])
def test_every_part_of_an_entry_is_missed_when_it_is_gone(tmp_path: Path, entry: dict[str, Any]) -> None:
    damaged = {"files": entry | {"files": ["tensorrt_llm/moved.py"]}}
    for key in ("class", "method", "function"):
        if key in entry:
            damaged[key] = entry | {key: "renamed"}
    for key in ("parameters", "fields", "properties", "text"):
        for part in entry.get(key, []):
            damaged[f"{key}-{len(damaged)}"] = entry | {key: [one for one in entry[key] if one != part]}
    for number, (key, one) in enumerate(damaged.items()):
        folder = tmp_path / str(number)
        write_tree(folder, [one])
        always = {name: value for name, value in entry.items() if name not in ("from", "before")}
        assert next(api.check(folder, {"release": "1.2.1", "entries": [always]})).problem, key


def test_without_the_package_a_checkout_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="not installed; name a checkout"):
        api.installed()


def _app() -> Any:
    import typer

    app = typer.Typer()
    app.command()(api.main)
    return app
