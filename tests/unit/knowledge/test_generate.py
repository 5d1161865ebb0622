"""Offline generation: every entity gets its text once, whatever is killed, refused or breaks on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from genrec.cli.main import app
from genrec.errors import DataError
from genrec.knowledge.decoder import Session
from genrec.knowledge.entities import Entities, read_entities
from genrec.knowledge.model import VERIFICATIONS, KnowledgeModel
from genrec.knowledge.offline import GenerationOptions, GenerationReport, generate, locked
from genrec.knowledge.pool import RetrievalPool
from genrec.knowledge.pools import Pools
from genrec.reporting.progress import Task
from genrec_builders.data import Dataset, write_dataset
from genrec_builders.knowledge.folder import grow_pools
from tests.histories import sequences
from tests.near import NEAR, narrowest_choice

USERS, NEW_TOKENS = 40, 16
GREEDY = GenerationOptions(verification="greedy", batch_size=4, max_new_tokens=NEW_TOKENS, save_every_s=0)
Rows = list[dict[str, Any]]


@contextmanager
def silent(title: str) -> Iterator[Task]:
    yield lambda done, total, note: None


class Interrupted(BaseException):
    """What a kill is to a test that must go on."""


def interrupted_after(texts: int) -> Callable[[str], Any]:
    @contextmanager
    def track(title: str) -> Iterator[Task]:
        def task(done: int, total: int, note: str) -> None:
            if title == "generate" and done == texts:
                raise Interrupted

        yield task

    return track


def histories(dataset: Dataset, users: int) -> dict[str, list[str]]:
    return dict(islice(sequences(dataset).items(), users))


def write_users(path: Path, users: dict[str, list[str]]) -> Path:
    pq.write_table(pa.table({"user_id": list(users), "history": pa.array(users.values(), pa.list_(pa.string()))}), path)
    return path


def rows_of(path: Path) -> Rows:
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def taken(knowledge_folder: Path, dataset: Dataset) -> dict[str, list[str]]:
    """Histories of users in whose texts no choice nearly ties: with whatever they are batched, they are the same."""
    model, some = KnowledgeModel(knowledge_folder), histories(dataset, USERS + 20)
    requests = [model.user_request(history, NEW_TOKENS) for history in some.values()]
    clear = set()
    for text in model.decoder(VERIFICATIONS["greedy"], 16, drafter=None).generate(requests):
        prompt = requests[text.index].prompt.tolist()
        if narrowest_choice(model.language_model, prompt + text.tokens.tolist(), len(prompt)) > NEAR:
            clear.add(text.index)
    found = {user: history for number, (user, history) in enumerate(some.items()) if number in clear}
    assert len(found) >= USERS
    return dict(list(found.items())[:USERS])


@pytest.fixture(scope="module")
def users(taken: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_users(tmp_path_factory.mktemp("entities") / "users.parquet", taken)


@pytest.fixture(scope="module")
def whole(
    knowledge_folder: Path, users: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GenerationReport]:
    """An uninterrupted greedy run, and its report. Read-only."""
    out = tmp_path_factory.mktemp("whole") / "texts.parquet"
    return out, generate(knowledge_folder, users, out, replace(GREEDY, compare=8), silent)


def test_every_entity_gets_its_text_in_order(
    whole: tuple[Path, GenerationReport], knowledge_folder: Path, users: Path
) -> None:
    rows, report = rows_of(whole[0]), whole[1]
    assert [row["id"] for row in rows] == pq.read_table(users)["user_id"].to_pylist()
    model = KnowledgeModel(knowledge_folder)
    entities = read_entities(users)
    alone = model.decoder(VERIFICATIONS["greedy"], 1, drafter=None)
    for at in (0, 17, USERS - 1):
        request = entities.request(model, at, NEW_TOKENS)
        (text,) = alone.generate([request])
        assert rows[at]["tokens"] == text.tokens.tolist() and rows[at]["text"] == model.text(text.tokens)
        assert rows[at]["group"] == request.group and rows[at]["error"] is None
    assert not whole[0].with_name("texts.parquet.parts").exists()
    assert (report.entities, report.texts, report.failures) == (USERS, USERS, [])
    assert report.tokens == sum(len(row["tokens"]) for row in rows)
    assert report.tokens_per_step > 1 and 0 < report.acceptance_by_depth[1] <= 1
    assert report.autoregressive_tokens_per_s and report.speed_up
    assert json.loads(whole[0].with_name("texts.parquet.json").read_text()) == json.loads(report.model_dump_json())


def arguments(folder: Path, entities: Path, out: Path, *more: str) -> list[str]:
    files = [str(folder), "--entities", str(entities), "--out", str(out)]
    options = ["--verification", "greedy", "--batch-size", "4", "--max-new-tokens", str(NEW_TOKENS)]
    return ["knowledge", "generate", *files, *options, "--save-every", "0", *more]


def test_a_killed_run_goes_on_and_ends_with_the_same_texts(
    whole: tuple[Path, GenerationReport], knowledge_folder: Path, users: Path, tmp_path: Path
) -> None:
    out = tmp_path / "texts.parquet"
    command = arguments(knowledge_folder, users, out)
    slowly = [sys.executable, "-m", "genrec.cli", *command, "--batch-size", "1"]
    process = subprocess.Popen(slowly, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while len(list(tmp_path.glob("texts.parquet.parts/*.parquet"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    saved = [row["position"] for part in tmp_path.glob("*.parts/*.parquet") for row in rows_of(part)]
    assert not out.exists() and 3 <= len(saved) < USERS

    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert rows_of(out) == rows_of(whole[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.parquet", "texts.parquet.json"]
    # What was saved was not written again, but for the texts that were in progress.
    statistics = json.loads(pq.read_schema(out).metadata[b"genrec.knowledge"])["statistics"]
    assert USERS <= statistics["texts"] <= USERS + 4


def test_texts_of_a_killed_run_are_drafted_from_again(
    knowledge_folder: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "texts.parquet", replace(GREEDY, verification="relaxed")
    with pytest.raises(Interrupted):
        generate(knowledge_folder, users, out, options, interrupted_after(10))
    saved = {tuple(row["tokens"]) for part in tmp_path.glob("*.parts/*.parquet") for row in rows_of(part)}
    added: list[list[Any]] = []
    add = Pools.add

    def noted(self: Pools, texts: Any, groups: Any) -> None:
        added.append([tuple(text.tolist()) for text in texts])
        add(self, texts, groups)

    monkeypatch.setattr(Pools, "add", noted)
    generate(knowledge_folder, users, out, options, silent)
    assert len(added[0]) == 10 and set(added[0]) == saved
    assert sum(map(len, added)) == USERS


@pytest.fixture
def copy(knowledge_folder: Path, tmp_path: Path) -> Path:
    """A knowledge folder that a test may change."""
    return Path(shutil.copytree(knowledge_folder, tmp_path / "folder"))


def state(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_texts_of_all_shards_become_drafts_of_later_ones(
    whole: tuple[Path, GenerationReport], copy: Path, users: Path, tmp_path: Path
) -> None:
    before, files = state(copy), [tmp_path / f"{number}.parquet" for number in range(2)]
    for number, out in enumerate(files):
        generate(copy, users, out, replace(GREEDY, shard=(number, 2)), silent)
    assert state(copy) == before, "a run changes nothing of the folder, or other shards could not be resumed"
    held = Pools.load(copy / "pools").by_group["global"].tokens
    command = ["knowledge", "grow", str(copy), *map(str, files)]
    for expected in (f"{USERS} texts added", "0 texts added"):  # again, as after a kill: nothing is counted twice
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0 and expected in result.output
    pools, rows = Pools.load(copy / "pools"), [row for out in files for row in rows_of(out)]
    assert pools.by_group["global"].tokens == held + sum(len(row["tokens"]) + 1 for row in rows)
    assert sum(pool.tokens for pool in pools.by_group.values()) == 2 * pools.by_group["global"].tokens
    again = tmp_path / "again.parquet"
    generate(copy, users, again, GREEDY, silent)
    assert rows_of(again) == rows_of(whole[0])


def test_pools_are_the_old_or_the_new_ones_whatever_happens(
    whole: tuple[Path, GenerationReport], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, save, saved = Pools.load(copy / "pools"), RetrievalPool.save, []

    def breaks(self: RetrievalPool, path: Path) -> None:
        saved.append(path)
        if len(saved) == 3:
            path.with_name(path.name + ".partial").write_bytes(b"PK")
            raise Interrupted
        save(self, path)

    monkeypatch.setattr(RetrievalPool, "save", breaks)
    with pytest.raises(Interrupted):
        grow_pools(copy, [whole[0]])
    monkeypatch.setattr(RetrievalPool, "save", save)
    found = Pools.load(copy / "pools")
    assert {g: p.tokens for g, p in found.by_group.items()} == {g: p.tokens for g, p in before.by_group.items()}
    assert grow_pools(copy, [whole[0]]) == USERS
    grown = Pools.load(copy / "pools")
    assert len(list((copy / "pools").iterdir())) == len(grown.by_group) + 1, "files of other pools are left"

    with locked(copy / "pools", ""), pytest.raises(ValueError, match="another process is adding texts"):
        grow_pools(copy, [whole[0]])
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"none\.parquet: cannot be read as texts"):
        grow_pools(copy, [tmp_path / "none.parquet"])
    with pytest.raises(ValueError, match="give the folder that `genrec knowledge build` writes"):
        grow_pools(tmp_path, [whole[0]])
    Pools(10).save(copy / "pools")
    with pytest.raises(ValueError, match=r"texts\.parquet: token \d+ is outside the pool's vocabulary"):
        grow_pools(copy, [whole[0]])


def test_other_arguments_are_refused_while_there_are_texts(
    knowledge_folder: Path, users: Path, tmp_path: Path, dataset: Dataset
) -> None:
    out = tmp_path / "texts.parquet"
    with pytest.raises(Interrupted):
        generate(knowledge_folder, users, out, GREEDY, interrupted_after(2))
    with pytest.raises(ValueError, match=r"max-new-tokens 16, now 8; grow yes, now no.*delete .*texts\.parquet\.parts"):
        generate(knowledge_folder, users, out, replace(GREEDY, max_new_tokens=8, grow=False), silent)
    others = write_users(tmp_path / "others.parquet", histories(dataset, 3))
    with pytest.raises(ValueError, match=r"\(entities sha256 \w+, now sha256 \w+\)"):
        generate(knowledge_folder, others, out, GREEDY, silent)
    # The batch size may be another, and files may lie elsewhere.
    moved = users.rename(tmp_path / "moved.parquet")
    generate(knowledge_folder, moved, out, replace(GREEDY, batch_size=3), silent)
    moved.rename(users)
    with pytest.raises(ValueError, match="verification greedy, now relaxed"):
        generate(knowledge_folder, users, out, replace(GREEDY, verification="relaxed"), silent)
    assert not out.with_name("texts.parquet.parts").exists()
    pq.write_table(pa.table({"id": ["u1"]}), out)
    with pytest.raises(ValueError, match=r"texts\.parquet: cannot be read as texts .* delete it"):
        generate(knowledge_folder, users, out, GREEDY, silent)


def test_only_one_process_writes_an_output(knowledge_folder: Path, users: Path, tmp_path: Path) -> None:
    out = tmp_path / "texts.parquet"

    @contextmanager
    def track(title: str) -> Iterator[Task]:
        with pytest.raises(ValueError, match="another process is writing it"):
            generate(knowledge_folder, users, out, GREEDY, silent)
        yield lambda done, total, note: None

    options = replace(GREEDY, shard=(0, 20))
    assert generate(knowledge_folder, users, out, options, track).texts == 2


def test_shards_make_the_whole(
    whole: tuple[Path, GenerationReport], knowledge_folder: Path, users: Path, tmp_path: Path
) -> None:
    expected = rows_of(whole[0])
    for index in range(3):
        out = tmp_path / f"{index}.parquet"
        report = generate(knowledge_folder, users, out, replace(GREEDY, shard=(index, 3)), silent)
        assert rows_of(out) == expected[index::3] and report.arguments["shard"] == f"{index}/3"


def test_refused_entities_are_listed(knowledge_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    good = histories(dataset, 2)
    first = next(iter(good.values()))[0]
    bad = {"empty": [], "unknown": ["no-1"], "unknown too": ["no-2", "no-3"], "long": [first] * 1025}
    users, out = write_users(tmp_path / "users.parquet", good | bad), tmp_path / "texts.parquet"
    result = CliRunner().invoke(app, arguments(knowledge_folder, users, out), env={"COLUMNS": "200"})
    assert result.exit_code == 1 and "2 texts of 6 entities" in result.output
    assert any("unknown, unknown too" in line and "2 " in line for line in result.output.splitlines())
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [*good, *bad] and not any(row["error"] for row in rows[:2])
    for row, reason in zip(rows[2:], ("0 items", "none is in the catalogue", "none is", "1025 items"), strict=True):
        assert reason in row["error"] and row["text"] is None and row["tokens"] is None and row["group"] is None
    assert CliRunner().invoke(app, arguments(knowledge_folder, users, out)).exit_code == 1
    assert rows_of(out) == rows


def test_items_by_their_attributes(knowledge_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    titles = pa.array([b"Tent", b"T\xffnt", b"x" * 257, b""]).cast(pa.binary())
    columns = {"item_id": ["new", "bad", "long", "none"], "title": titles, "sid_0": [1, 2, 3, 4], "colour": [None] * 4}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    out = tmp_path / "texts.parquet"
    report = generate(knowledge_folder, tmp_path / "items.parquet", out, GREEDY, silent)
    errors = [row["error"] for row in rows_of(out)]
    assert errors[0] is None and "not valid UTF-8" in errors[1] and "257 bytes" in errors[2]
    assert "no attribute with a value" in errors[3] and len(report.failures) == 3
    # A catalogue's own file asks for the same as ids alone.
    write_dataset(dataset, tmp_path / "shop")
    (tmp_path / "ids.csv").write_text("item_id\n" + "\n".join(dataset.items.item_ids[:5]))
    model = KnowledgeModel(knowledge_folder)
    catalogue, ids = read_entities(tmp_path / "shop" / "items.parquet"), read_entities(tmp_path / "ids.csv")
    assert len(catalogue) == len(dataset.items) and requests(model, catalogue)[:5] == requests(model, ids)


def requests(model: KnowledgeModel, entities: Entities) -> list[tuple[str, str, list[int]]]:
    made = [entities.request(model, at, None) for at in range(len(entities))]
    return [(entities.ids[at].as_py(), made[at].group, made[at].prompt.tolist()) for at in range(len(entities))]


def test_what_breaks_one_text_breaks_no_other(
    whole: tuple[Path, GenerationReport],
    knowledge_folder: Path,
    users: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, step, victim = tmp_path / "texts.parquet", Session.step, 11
    prompt = read_entities(users).request(KnowledgeModel(knowledge_folder), victim, NEW_TOKENS).prompt.tolist()
    alone = []

    def breaks(self: Session) -> Any:
        texts = [*self._running, *self._waiting]
        if any(text.tokens[: text.start].tolist() == prompt for text in texts):
            if len(texts) == 1:
                alone.append(texts)
            raise RuntimeError("out of [memory]")
        return step(self)

    monkeypatch.setattr(Session, "step", breaks)
    options = replace(GREEDY, attempts=3, compare=USERS)
    report = generate(knowledge_folder, users, out, options, silent)
    expected, rows = rows_of(whole[0]), rows_of(out)
    assert len(alone) == 1 + 3  # without drafts once
    assert [failure.model_dump() for failure in report.failures] == [
        {"error": "RuntimeError: out of [memory]", "count": 1, "ids": [expected[victim]["id"]]}
    ]
    assert rows[victim] == expected[victim] | {"text": None, "tokens": None, "error": "RuntimeError: out of [memory]"}
    assert rows[:victim] + rows[victim + 1 :] == expected[:victim] + expected[victim + 1 :]

    monkeypatch.setattr(Session, "step", step)
    totals = []

    @contextmanager
    def track(title: str) -> Iterator[Task]:
        yield lambda done, total, note: totals.append((title, total))

    again = generate(knowledge_folder, users, out, options, track)
    assert rows_of(out) == expected and not again.failures
    assert totals == [("prompts", 1), ("generate", 1)]  # only the one, and no second comparison
    assert again.autoregressive_tokens_per_s == report.autoregressive_tokens_per_s


def test_users_in_all_forms_are_the_same(
    knowledge_folder: Path, dataset: Dataset, taken: dict[str, list[str]], users: Path, tmp_path: Path
) -> None:
    model = KnowledgeModel(knowledge_folder)
    expected = requests(model, read_entities(users))
    (tmp_path / "users.csv").write_text(
        "more,user_id,history\n" + "\n".join(f'x,{user},"{", ".join(items)}"' for user, items in taken.items())
    )
    assert requests(model, read_entities(tmp_path / "users.csv")) == expected
    write_dataset(dataset, tmp_path / "shop")
    everyone = requests(model, read_entities(tmp_path / "shop" / "interactions.parquet"))
    assert [one for one in everyone if one[0] in taken] == expected
    # Backwards in the file, with times that say so; the first user in the file comes first.
    events = [(user, item, at) for user, items in taken.items() for at, item in enumerate(items)]
    backwards = "".join(f"{user},{item},{at}\n" for user, item, at in reversed(events))
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + backwards)
    assert requests(model, read_entities(tmp_path / "events.csv")) == expected[::-1]
    numbers = pa.table({"user_id": [7, 8], "history": [[1, 2], None]})
    pq.write_table(numbers, tmp_path / "numbers.parquet")
    entities = read_entities(tmp_path / "numbers.parquet")
    assert entities.ids.to_pylist() == ["7", "8"] and entities.histories.to_pylist() == [[b"1", b"2"], None]
    (tmp_path / "bytes.csv").write_bytes(b"user_id,history\n007,no\xff\n")
    entities = read_entities(tmp_path / "bytes.csv")
    assert entities.ids.to_pylist() == ["007"]
    with pytest.raises(ValueError, match="none is in the catalogue"):
        entities.request(model, 0, None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": ["u"], "items": ["a"]},
            r"has the columns user, items; .*user_id and history.*item_id and attributes",
        ),
        ({"user_id": ["u"], "item_id": ["a"]}, "has the columns user_id, item_id; it needs"),
        ({"user_id": ["u", None, ""], "history": [["a"]] * 3}, r"data row 2 has no user_id \(2 such rows\)"),
        ({"user_id": ["u", "v", "u"], "history": [["a"]] * 3}, r"data row 3 repeats a user_id \(1 such rows\)"),
        ({"user_id": [1.5], "history": [["a"]]}, "column 'user_id' is double"),
        ({"user_id": ["u"], "history": [[1.5]]}, "column 'history' is list<element: double>"),
        ({"user_id": [b"\xff"], "history": [["a"]]}, "column 'user_id': .*UTF"),
        ({"user_id": ["u"], "item_id": ["a"], "timestamp": ["late"]}, "column 'timestamp' is string"),
        ({"user_id": ["u"], "item_id": ["a"], "timestamp": [float("nan")]}, "data row 1 has no timestamp"),
        ({"item_id": ["a", "a"], "title": ["A", "B"]}, "data row 2 repeats a item_id"),
    ],
)
def test_bad_entity_files_are_refused(columns: dict[str, list], message: str, tmp_path: Path) -> None:
    path = tmp_path / "entities.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=message) as error:
        read_entities(path)
    assert str(error.value).startswith(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "entities.parquet").write_text("user_id,history\n")
    (tmp_path / "twice.csv").write_text("user_id,history,history\n")
    for name, message in (
        ("entities.parquet", "cannot be read"),
        ("none.csv", "cannot be read"),
        ("twice.csv", "more"),
    ):
        with pytest.raises(DataError, match=message):
            read_entities(tmp_path / name)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"verification": "loose"}, "verification is 'loose'; it must be one of greedy, relaxed"),
        ({"shard": (3, 3)}, "shard is 3/3; it must be i/n with 0 <= i < n"),
        ({"attempts": 0}, "attempts is 0; it must be at least 1"),
    ],
)
def test_bad_options_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**option)


def test_bad_arguments_are_refused(
    knowledge_folder: Path, users: Path, tmp_path: Path, run_genrec: Callable[..., tuple[int, str]]
) -> None:
    out = tmp_path / "texts.parquet"
    with pytest.raises(ValueError, match="max_new_tokens is 500; it must be 1 to 192"):
        generate(knowledge_folder, users, out, replace(GREEDY, max_new_tokens=500), silent)
    for words, message in (
        (["--shard", "1"], "--shard '1': write i/n"),
        (["--shard", "4/4"], "shard is 4/4; it must be i/n with 0 <= i < n"),
        (["--verification", "strict"], "--verification 'strict': use one of relaxed, greedy"),
    ):
        status, said = run_genrec(*arguments(knowledge_folder, users, out, *words))
        assert status == 2 and message in said
    assert not list(tmp_path.iterdir())


def test_a_folder_from_a_checkpoint(knowledge_folder: Path, dataset: Dataset, users: Path, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "shop")
    command = ["knowledge", "build", str(tmp_path / "shop"), str(tmp_path / "folder"), "--own-texts", "4"]
    result = CliRunner().invoke(app, [*command, "--checkpoint", str(knowledge_folder / "model")])
    assert result.exit_code == 0, result.output
    out = tmp_path / "texts.parquet"
    assert generate(tmp_path / "folder", users, out, replace(GREEDY, shard=(0, 20)), silent).texts == 2


def test_a_knowledge_folder_that_lacks_a_part_is_told_in_one_line(knowledge_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(knowledge_folder, tmp_path / "knowledge"))
    pq.write_table(pa.table({"title": ["a"]}), folder / "items.parquet")
    with pytest.raises(ValueError, match=r"items\.parquet: cannot be read as a table .*: has no 'item_id'$"):
        KnowledgeModel(folder)
    shutil.copy(knowledge_folder / "items.parquet", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / "model" / name).unlink()
    with pytest.raises(ValueError, match=r"^\S+/model: no tokenizer can be read: ") as refused:
        KnowledgeModel(folder)
    assert "\n" not in str(refused.value)
