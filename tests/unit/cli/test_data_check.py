"""`genrec data check`: what a build would use, drop or refuse, said before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from genrec.cli.main import app, main
from genrec_builders.data import Dataset, Interactions, ItemTable, split_leave_one_out, write_dataset
from genrec_builders.data.report import problems, semantic_ids_in_words

Check = Callable[..., tuple[int, dict[str, str], str]]


def data_folder(folder: Path, inter: dict[str, list[int]], index: dict[str, Any], **more: str) -> Path:
    for name, text in {"inter.json": json.dumps(inter), "index.json": json.dumps(index), **more}.items():
        (folder / name).write_text(text)
    return folder


INDEX = {str(item): f"{item % 3}-{item % 2}" for item in range(8)}
INTER = {"four": [0, 1, 2, 3], "three": [1, 2, 6], "two": [0, 1], "one": [0], "none": []}


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Checks a folder: exit status, the lines by their first words, and the error."""

    def run(folder: Path, *options: str) -> tuple[int, dict[str, str], str]:
        capsys.readouterr()
        status = main(["data", "check", str(folder), *options])
        said = capsys.readouterr()
        lines = said.out.replace("\n" + " " * 14, "\0").splitlines()  # what goes on has no name of its own
        errors = "".join(line for line in said.err.splitlines(keepends=True) if line.startswith("error: "))
        return status, {line[:14].strip(): line[14:].replace("\0", "\n") for line in lines}, errors

    return run


def test_a_split_at_a_moment_says_what_it_drops(check: Check, tmp_path: Path) -> None:
    events = {"both": [1, 2, 7, 8, 9], "once": [3, 6], "gone": [2, 2], "new": [8, 9]}
    rows = [f"{user},{time % 4},{time}\n" for user, times in events.items() for time in times]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    (tmp_path / "items.csv").write_text("item_id,sid\n" + "".join(f"{item},{item}-0\n" for item in range(4)))
    status, lines, error = check(tmp_path, "--split-at", "6")
    assert status == 0, error
    assert lines["times"] == (
        "1970-01-01T00:00:01 to 1970-01-01T00:00:09 (UTC, from numbers that look like seconds), nine tenths before "
        "1970-01-01T00:00:09; 1 interactions at the time of the user's one before keep the order of the file"
    )
    assert lines["split"].splitlines() == [
        "at 6: 2 training targets, 2 users to validate with, 1 to test with",
        "1 users (such as 'gone') without an interaction from the moment on: they only train",
        "1 users (such as 'once') with one from the moment on: they validate and do not test",
        "dropped: 1 users (such as 'new') without an interaction before the moment",
        "dropped: 1 interactions behind a user's second from the moment on",
        "1 users (such as 'once') with one interaction in training: no target",
    ]
    assert lines["items"] == "4; 0 never bought, 1 (such as '0') bought only in what does not train"
    status, _, error = check(tmp_path, "--split-at", "9")
    assert (
        status == 1 and "split at 9, no user has one interaction before the moment and two from it on (2 have" in error
    )
    status, _, error = check(tmp_path, "--split-at", "soon")
    assert status == 2 and "cannot split at 'soon': it is no moment" in error


def test_everything_that_a_build_would_do_is_said(check: Check, tmp_path: Path) -> None:
    titles = json.dumps({str(item): {"title": f"item {item}"} for item in range(8)})
    data_folder(tmp_path, INTER, INDEX, **{"item.json": titles, "notes.txt": ""})
    status, lines, error = check(tmp_path)
    assert (status, error) == (0, "")
    assert lines == {
        "folder": str(tmp_path),
        "files": "inter.json (interactions: JSON), item.json (items: JSON), index.json (semantic IDs: JSON)",
        "not used": "files notes.txt\n1 users of inter.json without interactions (none)",
        "users": "4; 1 users (such as 'one') with one interaction",
        "interactions": "10; 1 to 4 per user, median 2.5",
        "times": "none; the order of each user's list is what is known",
        "split": "leave-one-out: 2 training targets, 2 users to validate with, 2 to test with\n2 users (such as 'two') "
        "too short to be tested (under 3 interactions): they train with all they have\n2 users (such as 'three') with "
        "one interaction in training: no target",
        "items": "8; 3 (such as '4') never bought, 3 (such as '2') bought only in what does not train",
        "semantic IDs": "2 levels of 4, 2 codes (3, 2 used, perplexity 3, 2); 6 distinct, 50.0% of the items share "
        "theirs, at most 2 items one",
        "embeddings": "none",
        "attributes": "'title' (string)",
        "queries": "none",
        "ok: a build wo": "uld take this",
    }


def test_embeddings_and_queries_are_counted(check: Check, tmp_path: Path) -> None:
    queries = pa.array(["tent", "", "", "rope"], pa.large_string())
    inter = Interactions(["u"], np.array([0, 4]), np.array([0, 1, 0, 1], np.int32), queries)
    write_dataset(Dataset(ItemTable(["a", "b"], embeddings=np.zeros((2, 5), np.float32)), inter), tmp_path)
    status, lines, error = check(tmp_path)
    assert (status, error) == (0, "")
    assert lines["semantic IDs"] == "none; a build makes them from the embeddings"
    assert lines["embeddings"] == "5 dimensions"
    assert lines["queries"] == "2 of 4 interactions have one"


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ({"u": [0, 1], "v": [2, 3]}, "nothing to test with: the longest of 2 histories has 2 interactions"),
        ({"u": [0, 1, 2]}, "nothing to train on"),
        ({"u": [0, 99]}, "user 'u' has item 99"),
    ],
)
def test_what_a_build_refuses_ends_with_one_line(
    check: Check, tmp_path: Path, inter: dict[str, list[int]], message: str
) -> None:
    status, _, error = check(data_folder(tmp_path, inter, INDEX))
    assert status == 1
    assert error.startswith(f"error: {tmp_path}") and error.count("\n") == 1
    assert message in error


class Taken(Exception):
    """A build is about to make its model."""


TABLE = "user_id,item_id,timestamp\n" + "".join(f"u,{item},{item}\n" for item in range(5))
WIDE = ["<a_2147483646>", "<b_2147483646>", "<c_2147483646>"]
TAKEN = ("good", "no semantic IDs")
COMPARED: dict[str, dict[str, str]] = {
    "good": {"inter.json": json.dumps(INTER), "index.json": json.dumps(INDEX)},
    "two interactions": {"inter.json": '{"u": [0, 1], "v": [2, 3]}', "index.json": json.dumps(INDEX)},
    "three interactions": {"inter.json": '{"u": [0, 1, 2], "v": [0]}', "index.json": json.dumps(INDEX)},
    "no semantic IDs": {"interactions.csv": TABLE, "items.csv": "item_id,code\n0,1\n1,2\n2,3\n3,4\n4,5\n"},
    "no behaviour": {"interactions.csv": "user_id,item_id\n" + "u,0\n" * 5, "items.csv": "item_id\n0\n1\n"},
    "neither": {"interactions.csv": TABLE.replace("u,0,0\nu,1,1\nu,2,2\n", ""), "items.csv": "item_id\n3\n4\n"},
    "codes beyond int64": {"inter.json": json.dumps(INTER), "index.json": json.dumps(INDEX | {"7": WIDE})},
    "tokens beyond int32": {
        "inter.json": json.dumps(INTER),
        "index.json": json.dumps({item: [f"<a_{item}>", f"<b_{item}>"] for item in INDEX} | {"7": WIDE[:2]}),
    },
    "unknown item": {"inter.json": '{"u": [0, 1, 2, 99]}', "index.json": json.dumps(INDEX)},
    "cut": {"inter.json": '{"u": [0, 1', "index.json": json.dumps(INDEX)},
    "uneven": {"inter.json": json.dumps(INTER), "index.json": json.dumps(INDEX | {"7": "1-2-3"})},
    "nobody": {"inter.json": "{}", "index.json": json.dumps(INDEX)},
    "long id": {"interactions.csv": TABLE.replace(",4,", f",{'x' * 200},"), "items.csv": "item_id,sid\n"},
    "twice": {"interactions.csv": TABLE, "items.csv": "item_id,sid\n0,1-2\n0,1-3\n"},
}


@pytest.mark.parametrize("name", COMPARED)
def test_what_data_check_refuses_is_what_a_build_refuses(
    check: Check, name: str, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same words, and with nothing done; a build takes all that data check takes."""

    def taken(*arguments: Any) -> None:
        raise Taken

    monkeypatch.setattr("genrec_builders.build._model", taken)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for file, text in COMPARED[name].items():
        (data / file).write_text(text)
    status, _, error = check(data)
    if status == 0:
        with pytest.raises(Taken):
            run_genrec("build", data, out)
        assert name in TAKEN and error == ""
        return
    built, said = run_genrec("build", data, out)
    assert (status, built, name in TAKEN) == (1, 1, False)
    refused = [line for line in said.splitlines() if line.startswith("error: ")]
    assert refused == [error.rstrip("\n").replace(f"{data}: a build would refuse this: ", "")]
    assert not out.exists() and not out.with_name("out.work").exists()


def test_a_catalogue_without_semantic_ids_names_the_columns_that_may_be_theirs() -> None:
    items = ItemTable(["a", "b"], attributes={"semantic_id": ["1-2", "3-4"]})
    assert semantic_ids_in_words(items) == (
        "none, and no embeddings; a build makes them from what users took in training (if one of the columns "
        "'semantic_id' holds them, name it 'sid' or 'embedding')"
    )
    inter = Interactions(["u"], np.array([0, 4]), np.array([0, 1, 0, 1], np.int32))
    split = split_leave_one_out(inter)
    assert problems(Dataset(items, inter), split) == []
    levels = (2**31 - 1,) * 3
    (problem,) = problems(Dataset(ItemTable(["a", "b"], np.zeros((2, 3), np.int32), levels), inter), split)
    assert "more than the" in problem


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from genrec.cli.main import main; status = main(sys.argv[1:]); "
        "loaded = [name for name in ('torch', 'transformers', 'onnxruntime') if name in sys.modules]; "
        "sys.exit(f'{status} {loaded}')"
    )
    folder = data_folder(tmp_path, INTER, INDEX)
    done = subprocess.run(
        [sys.executable, "-c", program, "data", "check", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "0 []"


def test_a_build_says_what_it_reads_and_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec_builders.build.build_bundle", lambda data, out, config, track, curves: None)
    data_folder(tmp_path, INTER, INDEX, **{"notes.txt": ""})
    done = CliRunner().invoke(app, ["build", str(tmp_path), str(tmp_path.with_name("out"))])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "data: inter.json (interactions: JSON), index.json (semantic IDs: JSON); 4 users, 10 interactions, 8 items",
        "not used: files notes.txt; 1 users of inter.json without interactions (none)",
    ]
