"""`genrec catalog`: what its commands take, refuse and say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from genrec.cli.main import main
from genrec.live.store import CatalogStore
from tests.unit.live.world import QUANTIZER, SPACE, State, data_files, new_store, state_at, write_raw

Genrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def genrec(capsys: pytest.CaptureFixture[str]) -> Genrec:
    """Runs `genrec catalog`: its exit status, its output, and its error."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["catalog", *map(str, words)])
        said = capsys.readouterr()
        assert status == 0 or (said.err.startswith("error: ") and said.err.count("\n") == 1), said.err
        return status, said.out, said.err

    return run


@dataclass(frozen=True)
class Shop:
    """A catalogue with the items a (1), b (2) and c (3, not available), and a folder for files."""

    folder: Path

    @property
    def location(self) -> Path:
        return self.folder / "catalogue"

    @property
    def store(self) -> CatalogStore:
        return CatalogStore.open(str(self.location), QUANTIZER)

    def file(self, name: str, content: str) -> Path:
        (self.folder / name).write_text(content)
        return self.folder / name

    def state(self) -> State:
        store = self.store
        return state_at(store, store.latest())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    new_store(tmp_path / "catalogue", {"a": (1, 5, True), "b": (2, 6, True), "c": (3, 7, False)})
    return Shop(tmp_path)


def test_one_commit_from_every_kind_of_file(shop: Shop, genrec: Genrec) -> None:
    add = shop.file("new.csv", 'item_id,sid,popularity,available\nd,"1,2,3",9,false\n007,3-0-4,,\nb,,60,\n')
    files = {"--available": "c\r\n\n", "--unavailable": "a\n"}
    words = [word for option, text in files.items() for word in (option, shop.file(option.strip("-"), text))]
    status, out, _ = genrec("apply", shop.location, "--add", add, *words, "--message", "morning")
    assert (status, out) == (0, "version 1: 2 added, 1 changed, 0 removed, 1 available, 1 unavailable\n")
    d, seven = SPACE.encode(np.array([[1, 2, 3], [3, 0, 4]])).tolist()
    kept = {"a": (1, 5, False), "b": (2, 60, True), "c": (3, 7, True), "d": (d, 9, False), "007": (seven, 0, True)}
    assert shop.state() == kept
    assert genrec("apply", shop.location, "--remove", shop.file("gone.txt", "007\nd"))[:2] == (
        0,
        "version 2: 0 added, 0 changed, 2 removed, 0 available, 0 unavailable\n",
    )
    assert set(shop.state()) == {"a", "b", "c"}
    assert genrec("rollback", shop.location, 1)[:2] == (0, "version 3: as version 1\n")
    assert shop.state() == kept
    out = genrec("compact", shop.location, "--keep-versions", 2)[1]
    assert out == "version 4: compacted; the newest 2 versions are kept\n"
    out = genrec("log", shop.location)[1]
    assert [word in out for word in ("compact", "rollback", "morning", "init")] == [True] * 4
    assert "morning" not in genrec("log", shop.location, "--limit", 2)[1]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("quantized", [True, False])
def test_embeddings_and_attributes_of_every_format(shop: Shop, genrec: Genrec, ending: str, quantized: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    rows = [{"item_id": f"n{i}", "embedding": vectors[i].tolist(), "attributes": {"n": i}} for i in range(3)]
    path = shop.folder / f"new.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        texts = pd.DataFrame(rows)
        texts["attributes"] = texts["attributes"].map(json.dumps)
        texts.to_csv(path, index=False)
    bundle = shop.folder / "bundle"
    options = ["--bundle", bundle] if quantized else []
    if quantized:
        bundle_with_quantizer(bundle)
    assert genrec("apply", shop.location, "--add", path, *options)[0] == 0
    codes = SPACE.encode(QUANTIZER.encode(vectors)).tolist()
    assert [shop.state()[f"n{i}"][0] for i in range(3)] == codes
    [file] = data_files(shop.location, 1)
    written = pq.read_table(file).to_pylist()
    assert [json.loads(row["attributes"]) for row in written] == [{"n": i} for i in range(3)]
    assert all((row["sid"] is not None) == quantized for row in written)
    # The same embeddings again change no semantic ID; others do.
    options = options or ["--bundle", bundle_with_quantizer(bundle)]
    assert genrec("apply", shop.location, "--add", path, *options)[0] == 0
    other = shop.file("other.csv", f'item_id,embedding\na,"{vectors[0][0]},{vectors[0][1]}"\n')
    status, _, error = genrec("apply", shop.location, "--add", other)
    assert status == 1 and "item 'a' and 0 more have an embedding and no sid" in error and "--bundle" in error
    status, _, error = genrec("apply", shop.location, "--add", other, *options)
    assert status == 1 and "and has (1, 0, 0); give --change-sids" in error
    assert genrec("apply", shop.location, "--add", other, *options, "--change-sids")[0] == 0
    assert shop.state()["a"] == (codes[0], 5, True)


KINDS = {"brand": "string", "price": "number", "released": "timestamp", "tags": "strings"}
ACME = {"brand": "acme", "price": 1.5, "released": "2024-05-01T00:00:00Z", "tags": ["x", "2024-01-01"]}


@pytest.fixture
def described(tmp_path: Path) -> Shop:
    """The same with attributes: none of a and c, some of b."""
    new_store(
        tmp_path / "catalogue",
        {"a": (1, 5, True, (None, None)), "b": (2, 6, True, ("bee", 2.0)), "c": (3, 7, False, (None, None))},
        kinds=KINDS,
    )
    return Shop(tmp_path)


def attributes_of(shop: Shop, version: int) -> dict[str, Any]:
    [file] = data_files(shop.location, version)
    rows = pq.read_table(file).to_pylist()
    return {row["item_id"]: row["attributes"] and json.loads(row["attributes"]) for row in rows}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_attributes_may_be_columns(described: Shop, genrec: Genrec, ending: str) -> None:
    path = described.folder / f"new.{ending}"
    rows = [{"item_id": "a", **ACME, "popularity": 9}, {"item_id": "b", "popularity": 8}]
    if ending == "parquet":
        moment = datetime(2024, 5, 1, tzinfo=timezone.utc)
        pq.write_table(pa.Table.from_pylist([rows[0] | {"released": moment}, rows[1]]), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(
            'item_id,brand,price,released,tags,popularity\na,acme,1.5,2024-05-01,"x, 2024-01-01",9\nb,,,,,8\n'
        )
    assert genrec("apply", described.location, "--add", path)[0] == 0
    said = attributes_of(described, 1)
    released = datetime.fromisoformat(said["a"].pop("released").replace("Z", "+00:00"))
    assert released == datetime(2024, 5, 1, tzinfo=timezone.utc)
    assert said == {"a": {name: value for name, value in ACME.items() if name != "released"}, "b": None}


def test_attributes_may_be_a_record_of_json_lines(described: Shop, genrec: Genrec) -> None:
    path = described.file("new.jsonl", json.dumps({"item_id": "a", "attributes": {"brand": "x", "price": 2}}) + "\n")
    assert genrec("apply", described.location, "--add", path)[0] == 0
    assert attributes_of(described, 1)["a"] == {"brand": "x", "price": 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "item_id,colour\na,red\n",
            "column 'colour' is unknown; the columns are .*attributes, brand, price, released, tags",
        ),
        ("item_id,price\na,1\nb,cheap\n", "item 'b': attribute 'price' is \"cheap\", which is no number"),
        ("item_id,released\na,soon\n", "attribute 'released' is \"soon\", which is no timestamp"),
        ('item_id,attributes\na,"{""price"": ""1""}"\n', "item 'a': attribute 'price' is \"1\", which is no number"),
        (
            'item_id,attributes\na,"{""colour"": 1}"\n',
            "item 'a': attribute 'colour' is unknown; the catalogue has brand, p",
        ),
        ("item_id,attributes,brand\na,{},x\n", "both a column 'attributes' and 'brand'"),
    ],
)
def test_attributes_that_the_catalogue_does_not_take(described: Shop, genrec: Genrec, table: str, message: str) -> None:
    status, _, error = genrec("apply", described.location, "--add", described.file("new.csv", table))
    assert status == 1 and re.search(message, error), error
    assert described.store.latest() == 0


def test_an_attribute_column_of_another_type_is_refused(described: Shop, genrec: Genrec) -> None:
    path = described.folder / "new.parquet"
    pq.write_table(pa.table({"item_id": ["a"], "brand": [["acme"]]}), path)
    status, _, error = genrec("apply", described.location, "--add", path)
    assert status == 1 and "column 'brand': the attribute is string, and" in error


def test_other_names_are_kept_in_the_store_by_other_writers(described: Shop, genrec: Genrec) -> None:
    rows = [{"item_id": "a", "operation": "upsert", "attributes": '{"colour": {"r": 1}, "price": 3}'}]
    write_raw(described.location, rows)
    state = described.store.read_commits(0, 1)
    assert not state.refused and state.changes.columns["price"].tolist() == [3.0]
    assert "colour" not in state.changes.columns
    assert attributes_of(described, 1)["a"]["colour"] == {"r": 1}


def test_a_catalogue_without_kinds_serves_none(shop: Shop) -> None:
    write_raw(shop.location, [{"item_id": "a", "operation": "upsert", "attributes": "anything"}])
    read = shop.store.read_commits(0, 1)
    assert not read.refused and not read.changes.columns and not shop.store.kinds


def bundle_with_quantizer(path: Path) -> Path:
    """As much of a bundle as `--bundle` reads."""
    manifest = {
        "format_version": 2,
        "bundle_version": "x",
        "created": "",
        "levels": list(SPACE.levels),
        "prompt": {"prefix": [], "placeholders": [1], "sid_tokens": [[[0, 4]]] * 3, "max_history": 1},
        "beam_width": 8,
        "limits": {"top_k": 4, "exclude": 4, "history": 4},
        "catalog": {"version": 1, "items": 1, "available": 1},
        "files": {},
    }
    QUANTIZER.save(path / "quantizer")
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("add.csv", "item_id,sid,price\nx,1-1-1,3\n", "column 'price' is unknown"),
        ("add.csv", "id,sid\nx,1-1-1\n", "column 'id' is unknown"),
        ("add.csv", "sid\n1-1-1\n", "has no column 'item_id'"),
        ("add.csv", "item_id,sid\nx,1-1-1\ny,0-0-0\nx,1-1-2\n", "item 'x' is named 2 times; name an item once (2 such"),
        ("add.csv", "item_id,sid\nx,1-3-1\n", "item 'x': sid [1, 3, 1] must have 3 codes, of 0 up to below 4, 3, 5"),
        ("add.csv", "item_id,sid\nx,1-1\n", "item 'x': sid [1, 1] must have 3 codes"),
        ("add.csv", "item_id,sid\nx,1-b-1\n", "item 'x': sid '1-b-1' is not codes such as 3,7,4 (1 such"),
        ("add.csv", "item_id,sid,popularity\nx,1-1-1,many\n", "item 'x': popularity 'many' is not a whole number"),
        ("add.csv", "item_id,sid,popularity\nx,1-1-1,-4\n", "item 'x': popularity -4 is below 0"),
        ("add.csv", "item_id,sid,available\nx,1-1-1,maybe\n", "item 'x': available 'maybe' is not true or false"),
        ("add.csv", "item_id,embedding\nx,0.5\n", "item 'x': its embedding has 1 values; the catalogue takes 2"),
        ("add.csv", "item_id,embedding\nx,nan 1\n", "item 'x': its embedding has values that are not finite"),
        ("add.csv", "item_id,embedding\nx,1;2\n", "item 'x': embedding '1;2' is not numbers"),
        ("add.csv", "item_id,popularity\nx,1\n", "item 'x' is new and has neither a sid nor an embedding"),
        (
            "add.csv",
            "item_id,sid\na,3-0-0\n",
            "item 'a' would get the sid (3, 0, 0) and has (1, 0, 0); give --change-sids",
        ),
        ("add.csv", "item_id,sid,attributes\nx,1-1-1,[1]\n", "item 'x': attributes '[1]' are no JSON object"),
        ("add.csv", "item_id,sid,sid\nx,1-1-1,1-1-1\n", "column 'sid' is there twice"),
        ("add.csv", f"item_id,sid\n{'x' * 129},1-1-1\n", "has 129 bytes; an id has 1 to 128"),
        ("add.csv", "item_id,sid\nx,1-1-1\n,1-1-1\n", "item '' has 0 bytes"),
        ("add.csv", "item_id,sid\nx,1-1-1,9\n", "cannot be read"),
        ("add.csv", "", "cannot be read"),
        ("add.jsonl", '{"item_id": "x", "sid": [1, 1, 1.5]}\n', "column 'sid' is list<item: double>"),
        ("add.jsonl", '{"item_id": 1.5, "sid": [1, 1, 1]}\n', "column 'item_id' has numbers with fractions"),
        ("add.jsonl", '{"item_id": "x"', "cannot be read"),
        ("add.parquet", "PAR1", "cannot be read"),
        ("add.txt", "x", "ends in '.txt'; write the items as .parquet, .csv, .jsonl"),
        (
            "remove.txt",
            "a\nnobody\nnothing\n",
            "item 'nobody' is not in the catalogue at version 0; take it out of the",
        ),
        ("available.txt", "nobody\n", "item 'nobody' is not in the catalogue"),
        ("unavailable.txt", "nobody\n", "item 'nobody' is not in the catalogue"),
        ("remove.txt", "a\nb\na\n", "item 'a' is named 2 times"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    shop: Shop, genrec: Genrec, option: str, content: str, message: str
) -> None:
    path = shop.file(option, content)
    status, _, error = genrec("apply", shop.location, f"--{path.stem}", path)
    assert status == 1 and str(path) in error and message in error, error
    assert shop.store.latest() == 0 and len(list(shop.location.glob("*.parquet"))) == 1


def test_an_item_in_two_files_is_refused(shop: Shop, genrec: Genrec) -> None:
    gone, out = shop.file("gone.txt", "b\na\n"), shop.file("out.txt", "c\na\n")
    status, _, error = genrec("apply", shop.location, "--remove", gone, "--unavailable", out)
    assert status == 1 and f"{gone}: item 'a' is in {out} too; name it in one of them (2 such rows)" in error
    assert shop.store.latest() == 0


def test_bytes_that_are_no_text_are_refused(shop: Shop, genrec: Genrec) -> None:
    path = shop.folder / "gone.txt"
    path.write_bytes(b"a\n\xff\n")
    assert "is not UTF-8 text at byte 2" in genrec("apply", shop.location, "--remove", path)[2]


def test_ids_of_numbers_are_their_digits(shop: Shop, genrec: Genrec) -> None:
    path = shop.folder / "new.parquet"
    pq.write_table(
        pa.table({"item_id": [12, 2**53 + 1], "sid": [[0, 0, 1], [0, 0, 2]], "popularity": [1.0, None]}), path
    )
    lines = shop.file("new.jsonl", '{"item_id": 13, "sid": [0, 0, 3]}\n{"item_id": 14, "sid": [0, 0, 4]}\n')
    dates = shop.file("dates.jsonl", '{"item_id": "2024-01-01", "sid": [0, 0, 3]}\n')
    for number, file in enumerate((path, lines, dates), 1):
        assert genrec("apply", shop.location, "--add", file)[1].startswith(f"version {number}: ")
    assert set(shop.state()) == {"a", "b", "c", "12", str(2**53 + 1), "13", "14", "2024-01-01"}


@pytest.mark.parametrize("writer", ["pandas", "pyarrow"])
def test_a_foreign_writer_needs_nothing_but_deltalake(shop: Shop, writer: str) -> None:
    location = str(shop.location)

    def append(rows: dict[str, list]) -> None:
        table = pd.DataFrame(rows) if writer == "pandas" else pa.table(rows)
        write_deltalake(location, table, mode="append", schema_mode="merge")

    append({"item_id": ["d", "e"], "operation": ["upsert"] * 2, "sid": [[0, 1, 2], [3, 2, 4]]})
    append({"item_id": ["a"], "operation": ["remove"]})
    append({"item_id": ["b"], "operation": ["upsert"], "available": [False]})
    d, e = SPACE.encode(np.array([[0, 1, 2], [3, 2, 4]])).tolist()
    want = {"b": (2, 6, False), "c": (3, 7, False), "d": (d, 0, True), "e": (e, 0, True)}
    assert shop.state() == want
    append({"item_id": ["b"], "operation": ["upsert"], "prise": [3]})
    append({"item_id": ["b"], "operation": ["upsert"], "popularity": [1]})
    store = shop.store
    refused = store.read_commits(0, store.latest()).refused
    assert [version for version, _ in refused] == [4] and "column 'prise' is unknown" in refused[0][1]
    assert store.commit(pa.table({"item_id": ["c"], "operation": ["remove"]}), 5, "") == 6
    assert shop.state() == {"b": (2, 1, False), "d": (d, 0, True), "e": (e, 0, True)}


def test_rows_that_another_program_rewrites_are_no_change(shop: Shop) -> None:
    before = shop.state()
    write_raw(shop.location, [{"item_id": "d", "operation": "upsert", "sid": [0, 0, 4]}])
    table = DeltaTable(str(shop.location))
    table.optimize.compact()
    table.delete("item_id = 'a'")
    table.update(predicate="item_id = 'b'", updates={"popularity": "99"})
    write_deltalake(table, pa.table({"item_id": ["z"], "operation": ["upsert"]}), mode="overwrite", schema_mode="merge")
    store = shop.store
    assert shop.state() == before | {"d": (int(SPACE.encode(np.array([0, 0, 4]))), 0, True)}
    assert [version for version, _ in store.read_commits(0, store.latest()).refused] == [3, 4, 5]
    store.compact()
    store.compact(keep_versions=1)
    assert shop.state() == before | {"d": (int(SPACE.encode(np.array([0, 0, 4]))), 0, True)}


def test_a_missing_package_says_how_to_get_it(shop: Shop, genrec: Genrec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    status, _, error = genrec("log", shop.location)
    assert status == 1 and "pip install 'genrec-triton[catalog]'" in error and "deltalake" in error


def test_usage(shop: Shop, genrec: Genrec) -> None:
    assert genrec("apply", shop.location)[0] == 2
    status, _, error = genrec("log", shop.location, "--storage-option", "key")
    assert status == 2 and "--storage-option 'key': write KEY=VALUE" in error
    assert f"{shop.location}: has no version 5; the newest is 0" in genrec("rollback", shop.location, 5)[2]
    empty = shop.folder / "bundle"
    bundle_with_quantizer(empty)
    for file in (empty / "quantizer").iterdir():
        file.unlink()
    (empty / "quantizer").rmdir()
    gone = shop.file("gone.txt", "a")
    error = genrec("apply", shop.location, "--remove", gone, "--bundle", empty)[2]
    assert f"--bundle {empty}: has no quantiser" in error
