"""What commands may write over: nothing but what genrec wrote, never an input, and never before the new is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrec.bundle import MANIFEST, Bundle, BundleError, new_bundle, seal_bundle
from genrec.cli.main import main
from genrec.evaluation.bootstrap import relative_difference
from genrec.evaluation.results import Results
from genrec.serving.repository import Deployment, render_repository
from genrec_builders.data import Dataset, read_dataset, write_dataset

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: its exit status, and what it wrote to standard error."""

    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def shop(dataset: Dataset, tmp_path: Path) -> Path:
    write_dataset(dataset, tmp_path / "shop")
    return tmp_path / "shop"


def thesis_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "thesis.txt").write_text("years of work\n")
    return folder / "thesis.txt"


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Every command that writes a folder: its words, with the places of what it reads and writes.
WRITERS: dict[str, list[str]] = {
    "build": ["build", "{data}", "{out}"],
    "demo-shop": ["demo-shop", "{out}"],
    "export": ["export", "{bundle}", "{out}", "--beam-width", "64"],
    "export-tensorrt-llm": ["export-tensorrt-llm", "{bundle}", "{out}"],
    "render": ["render", "{bundle}", "{out}"],
    "compare": ["compare", "{data}", "--model", "a={bundle}", "--out", "{out}"],
    "compare-report": ["compare-report", "{out}", "{results}"],
    "knowledge build": ["knowledge", "build", "{data}", "{out}"],
}


def words_of(command: str, **places: Path) -> list[str]:
    return [word.format(**places) for word in WRITERS[command]]


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_holds_anything_else_is_refused_before_any_work(
    command: str, bundle: Bundle, tmp_path: Path, run: Run
) -> None:
    """The inputs are not even there: the refusal comes first."""
    thesis = thesis_in(tmp_path / "out")
    (tmp_path / "out" / "empty").mkdir()
    missing = tmp_path / "missing"
    places = {"data": missing, "bundle": bundle.path, "results": missing, "out": tmp_path / "out"}
    status, said = run(*words_of(command, **places))
    assert status == 1 and said.count("\n") == 1, said
    assert f"{tmp_path / 'out'}: holds thesis.txt" in said and "name another" in said, said
    assert thesis.read_text() == "years of work\n" and sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_in_place_of_the_folder_is_refused(command: str, bundle: Bundle, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("years of work\n")
    missing = tmp_path / "missing"
    places = {"data": missing, "bundle": bundle.path, "results": missing, "out": tmp_path / "out"}
    status, said = run(*words_of(command, **places))
    assert status == 1 and f"{tmp_path / 'out'}: is a file" in said, said
    assert (tmp_path / "out").read_text() == "years of work\n"


@pytest.mark.parametrize("command", [name for name, words in WRITERS.items() if len(words) > 2])
@pytest.mark.parametrize("where", ["equal", "inside", "around", "by a link"])
def test_an_output_is_no_input(
    command: str, where: str, bundle_copy: Path, shop: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    shutil.copytree(Path(__file__).parents[3] / "docs" / "quality" / "widths", results)
    places = {"data": shop, "bundle": bundle_copy, "results": results}
    read = places[next(word for word in ("bundle", "data", "results") if f"{{{word}}}" in " ".join(WRITERS[command]))]
    before = files_in(tmp_path)
    (tmp_path / "link").symlink_to(read)
    out = {"equal": read, "inside": read / "new" / "out", "around": tmp_path, "by a link": tmp_path / "link"}[where]
    monkeypatch.chdir("/")
    status, said = run(*words_of(command, **places, out=out))
    assert status == 1 and said.count("\n") == 1 and f"error: {out}: " in said and "name another" in said, said
    assert any(f" {place}, which is read" in said for place in places.values()), said
    (tmp_path / "link").unlink()
    assert files_in(tmp_path) == before


def test_a_checkpoint_is_no_output_either(
    shop: Path, bundle_copy: Path, knowledge_folder: Path, tmp_path: Path, run: Run
) -> None:
    model = Path(shutil.copytree(knowledge_folder / "model", tmp_path / "model"))
    before = files_in(tmp_path)
    for command, folder in ((["build"], bundle_copy / "checkpoint"), (["knowledge", "build"], model)):
        status, said = run(*command, shop, folder, "--checkpoint", folder)
        assert status == 1 and f"error: {folder}: is the same as {folder}, which is read; name another" in said, said
    assert files_in(tmp_path) == before


def test_a_bundle_is_replaced_if_nothing_else_is_with_it(bundle: Bundle, bundle_copy: Path, run: Run) -> None:
    assert run("export", bundle.path, bundle_copy, "--beam-width", 70)[0] == 0
    assert Bundle(bundle_copy).manifest.beam_width == 70
    assert not [path for path in bundle_copy.parent.iterdir() if path.name.startswith(".")]
    thesis = thesis_in(bundle_copy / "checkpoint" / "notes")
    before = files_in(bundle_copy)
    status, said = run("export", bundle.path, bundle_copy, "--beam-width", 80)
    assert status == 1 and "holds checkpoint/notes/thesis.txt" in said, said
    assert files_in(bundle_copy) == before and thesis.exists()


def test_an_empty_folder_is_filled(bundle: Bundle, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out" / "empty" / "as well").mkdir(parents=True)
    assert run("export", bundle.path, tmp_path / "out", "--beam-width", 70)[0] == 0
    Bundle(tmp_path / "out").check()


def test_a_link_to_a_bundle_stays_a_link(bundle: Bundle, bundle_copy: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "current").symlink_to(bundle_copy.name)
    assert run("export", bundle.path, tmp_path / "current", "--beam-width", 70)[0] == 0
    assert (tmp_path / "current").is_symlink() and Bundle(bundle_copy).manifest.beam_width == 70


def test_the_folder_that_one_stands_in_is_not_replaced(
    bundle: Bundle, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for out in (".", ".."):
        status, said = run("export", bundle.path, out, "--beam-width", 70)
        assert status == 1 and f"error: {out}: is the folder that you are in" in said, said


def test_a_place_that_cannot_be_written_to_is_found_first(
    shop: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    status, said = run("build", shop, tmp_path / "file" / "out")
    assert status == 1 and f"{tmp_path / 'file'} is a file" in said, said
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("closed"))
    (tmp_path / "closed").mkdir()
    status, said = run("build", shop, tmp_path / "closed" / "new" / "out")
    assert status == 1 and f"{tmp_path / 'closed'} cannot be written to" in said, said


def test_the_old_bundle_stays_until_the_new_one_is_whole(
    bundle: Bundle, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(bundle_copy)

    class Killed(Exception):
        pass

    with pytest.raises(Killed), new_bundle(bundle_copy):
        raise Killed
    assert files_in(bundle_copy) == before
    with pytest.raises(BundleError, match="is missing"), new_bundle(bundle_copy):
        pass  # no manifest
    with pytest.raises(BundleError, match=r"catalog\.npz|catalog/"), new_bundle(bundle_copy) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        next((folder / "catalog").iterdir()).write_bytes(b"damaged")
        seal_bundle(folder, **bundle.manifest.model_dump(exclude={"format_version", "files"}))
    assert files_in(bundle_copy) == before

    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="no space"), new_bundle(bundle_copy) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
    assert files_in(bundle_copy) == before and os.listdir(bundle_copy.parent) == [bundle_copy.name]


def test_what_comes_into_the_folder_meanwhile_stays(bundle: Bundle, bundle_copy: Path) -> None:
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt"), new_bundle(bundle_copy) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        thesis_in(bundle_copy)
    assert (bundle_copy / "thesis.txt").exists() and (bundle_copy / MANIFEST).exists()


def test_a_model_repository_is_replaced_if_nothing_else_is_with_it(bundle: Bundle, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "models"
    assert run("render", bundle.path, out)[0] == 0
    written = files_in(out)
    (out / "backbone" / "1" / "__pycache__").mkdir()  # of a server
    (out / "backbone" / "1" / "__pycache__" / "model.cpython-310.pyc").write_bytes(b"")
    assert run("render", bundle.path, out)[0] == 0
    assert files_in(out) == written
    thesis = thesis_in(out / "recommend" / "1")
    status, said = run("render", bundle.path, out)
    assert status == 1 and "holds recommend/1/thesis.txt" in said and thesis.exists(), said


def test_the_old_model_repository_stays_until_the_new_one_is_whole(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = render_repository(bundle, tmp_path / "models", Deployment())
    before = files_in(out)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("genrec.serving.repository._fill", full)
    with pytest.raises(OSError, match="no space"):
        render_repository(bundle, out, Deployment())
    assert files_in(out) == before and os.listdir(tmp_path) == ["models"]


def test_a_dataset_of_ones_own_is_not_replaced_by_the_demo_shop(shop: Path, tmp_path: Path, run: Run) -> None:
    words = "--items", 100, "--users", 10
    assert run("demo-shop", tmp_path / "made", *words)[0] == run("demo-shop", tmp_path / "made", *words)[0] == 0
    assert len(read_dataset(tmp_path / "made").items) == 100
    import pyarrow.parquet as pq

    for name in ("items", "interactions"):  # as anybody writes them
        path = shop / f"{name}.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    before = files_in(shop)
    status, said = run("demo-shop", shop, *words)
    assert status == 1 and f"{shop}: holds interactions.parquet" in said and "name another" in said, said
    assert files_in(shop) == before


def test_a_dataset_is_replaced_whole_or_not_at_all(
    dataset: Dataset, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(shop)
    import pyarrow.parquet as pq

    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, where: 1 / 0 if "inter" in str(where) else write(table, where))
    for path in (shop, tmp_path / "new"):
        with pytest.raises(ZeroDivisionError):
            write_dataset(dataset, path)
    assert files_in(shop) == before and os.listdir(tmp_path) == ["shop"]


def test_a_knowledge_folder_is_replaced_if_nothing_else_is_with_it(
    knowledge_folder: Path, shop: Path, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(knowledge_folder, folder)
    thesis_in(tmp_path / "folder.work")  # not genrec's, whatever its name
    words = "knowledge", "build", shop, folder, "--checkpoint", knowledge_folder / "model", "--own-texts", 2
    before = (folder / "pools" / "pools.json").read_text()
    assert run(*words)[0] == 0
    assert (folder / "pools" / "pools.json").read_text() != before
    assert (tmp_path / "folder.work" / "thesis.txt").exists()
    thesis = thesis_in(folder / "pools")
    status, said = run(*words)
    assert status == 1 and "holds pools/thesis.txt" in said and thesis.exists(), said


def test_the_work_folder_of_a_build_holds_nothing_else(shop: Path, tmp_path: Path, run: Run) -> None:
    thesis = thesis_in(tmp_path / "out.work")
    status, said = run("build", shop, tmp_path / "out")
    assert status == 1 and f"{tmp_path / 'out.work'}: holds thesis.txt" in said and thesis.exists(), said
    # What is trained so far goes into OUT.work, which is removed in the end.
    os.rename(shop, tmp_path / "new.work")
    before = files_in(tmp_path / "new.work")
    status, said = run("build", tmp_path / "new.work", tmp_path / "new")
    assert status == 1 and f"{tmp_path / 'new.work'}" in said and "name another" in said, said
    assert files_in(tmp_path / "new.work") == before


def test_a_merged_report_does_not_replace_rankings_that_it_lacks(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare-report A B`, the output forgotten, would leave A with the rankings of B alone."""
    few = partial(relative_difference, resamples=200)  # 10,000 take seconds
    monkeypatch.setattr("genrec.evaluation.results.relative_difference", few)
    widths = Path(__file__).parents[3] / "docs" / "quality"
    whole = Results.load(widths / "widths")
    shutil.copytree(widths / "widths", tmp_path / "a")
    whole.record.cells.pop()
    whole.save(tmp_path / "b")
    before = files_in(tmp_path / "a")
    status, said = run("compare-report", tmp_path / "a", tmp_path / "b")
    assert status == 1 and said.count("\n") == 1 and f"{tmp_path / 'a'}: holds " in said and "name another" in said
    assert files_in(tmp_path / "a") == before
    assert run("compare-report", tmp_path / "b", tmp_path / "a")[0] == 0  # nothing is lost
    assert len(Results.load(tmp_path / "b").record.cells) == len(Results.load(tmp_path / "a").record.cells)


def test_texts_do_not_replace_other_files(knowledge_folder: Path, tmp_path: Path, run: Run) -> None:
    """Beside OUT a run writes OUT.json and OUT.parts, which is removed in the end."""
    users = tmp_path / "users.csv"
    users.write_text("user_id,history\n")
    words = "knowledge", "generate", knowledge_folder, "--entities", users, "--out"
    (tmp_path / "inter.json").write_text('{"u": ["a"]}')
    thesis_in(tmp_path / "texts.parts")
    thesis_in(tmp_path / "folder")
    before = files_in(tmp_path)
    for out, named in (
        (tmp_path / "inter", tmp_path / "inter.json"),
        (tmp_path / "texts", tmp_path / "texts.parts"),
        (tmp_path / "folder", tmp_path / "folder"),
        (users, users),
        (knowledge_folder / "texts", knowledge_folder),
    ):
        status, said = run(*words, out)
        assert status == 1 and said.count("\n") == 1, said
        assert str(named) in said and "name another" in said and "delete" not in said, said
    assert files_in(tmp_path) == before
    assert np.all([not name.startswith("texts") for name in os.listdir(knowledge_folder)])
