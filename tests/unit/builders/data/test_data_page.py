"""The examples of docs/data.md are read as the page says, and so are their variants."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.errors import DataError
from genrec_builders.data import read_dataset
from genrec_builders.data.json_lines import read_records
from tests.histories import sequences

PAGE = (Path(__file__).parents[4] / "docs/data.md").read_text()
SEQUENCES = {"1": ["20", "10", "30"], "2": ["10", "20"]}
FIRST = 978_300_761  # seconds; the five interactions are a second apart
SECONDS = {"1": [0, 2, 3], "2": [1, 4]}


def examples() -> dict[str, str]:
    """The files of the page's examples, by name."""
    section = PAGE[PAGE.index("\n## Examples") : PAGE.index("\n## Ids and times")]
    return dict(re.findall(r"^`([\w.]+)`[^\n]*\n\n```\w+\n(.*?)^```$", section, flags=re.S | re.M))


PAIRS = [
    ("shop.inter", "shop.item"),
    ("All_Beauty.jsonl", "meta_All_Beauty.jsonl"),
    ("ratings.csv", "movies.csv"),
    ("ratings.dat", "movies.dat"),
    ("interactions.csv", "items.jsonl"),
    ("inter.json", "index.json", "item.json"),
]


def put(folder: Path, names: tuple[str, ...], packed: bool = False) -> Path:
    for name in names:
        data = examples()[name].encode()
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(data) if packed else data)
    return folder


def test_every_example_is_tried() -> None:
    assert sorted(examples()) == sorted(name for names in PAIRS for name in names)


@pytest.mark.parametrize(
    ("names", "packed"),
    [(names, packed) for names in PAIRS for packed in (False, True) if not packed * (".dat" in names[0])],
)
def test_an_example_is_read(names: tuple[str, ...], packed: bool, tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("not data")
    lines: list[str] = []
    dataset = read_dataset(put(tmp_path, names, packed), lines.append)
    assert sequences(dataset) == SEQUENCES
    assert dataset.items.item_ids == ["10", "20", "30", "40"]
    titles = next(texts for name, texts in dataset.items.attributes.items() if "title" in name)
    assert [title[:4] for title in titles] == ["Tent", "Lamp", "", "Rope"]
    assert "not used: files README.txt" in lines[1]
    times = dataset.interactions.times
    if names[0] == "inter.json":
        assert times is None
        return
    assert times is not None
    since = times.astype("M8[ms]") if times.dtype.kind == "M" else times
    scale = 1000 if names[0] in ("All_Beauty.jsonl",) or times.dtype.kind == "M" else 1
    first = 978_307_200 + 1 if names[0] == "interactions.csv" else FIRST
    expected = [(first + after) * scale for user in ("1", "2") for after in SECONDS[user]]
    assert since.astype(np.int64).tolist() == expected


def test_what_an_example_leaves_out_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    read_dataset(put(tmp_path, PAIRS[1]), lines.append)
    assert "All_Beauty.jsonl (interactions: JSON Lines, parent_asin as item_id)" in lines[0]
    assert "column 'details' of meta_All_Beauty.jsonl, which is struct<>" in lines[1]
    assert "columns 'rating', 'title', 'text', 'images', 'asin', 'verified_purchase' of All_Beauty.jsonl" in lines[1]
    items = read_dataset(tmp_path).items
    assert items.attributes["price"] == ["24.99", "from 9.99", "", ""]
    assert items.typed["features"].tolist() == [["Two persons"], [], [], []]
    assert items.typed.kinds["average_rating"] == "number" and items.typed.kinds["price"] == "string"


def test_ratings_alone_and_latin_1(tmp_path: Path) -> None:
    put(tmp_path, PAIRS[1])
    (tmp_path / "All_Beauty.jsonl").unlink()
    text = examples()["ratings.csv"].replace("userId,movieId", "user_id,parent_asin")
    (tmp_path / "All_Beauty.csv").write_text(text)
    assert sequences(read_dataset(tmp_path)) == SEQUENCES
    (tmp_path / "movies.dat").write_bytes(examples()["movies.dat"].encode("latin-1"))
    (tmp_path / "ratings.dat").write_text(examples()["ratings.dat"])
    for path in (*tmp_path.glob("*.csv"), *tmp_path.glob("*.jsonl")):
        path.unlink()
    assert read_dataset(tmp_path).items.attributes["title"][0] == "Tent: The Misérables (1995)"
    (tmp_path / "movies.dat").write_text("10::Tent\n")
    with pytest.raises(DataError, match=r"movies\.dat: line 1 has 2 values between '::'; expected id, title, genres"):
        read_dataset(tmp_path)


def test_known_names_give_way_to_the_projects_own(tmp_path: Path) -> None:
    """Also those of files: a folder that has both is read as before."""
    (tmp_path / "interactions.csv").write_text("user_id,userId,item_id,time,timestamp\nu,1,20,1,2\nu,1,10,2,1\n")
    put(tmp_path, ("movies.csv",))
    (tmp_path / "items.csv").write_text("item_id\n10\n20\n")
    (tmp_path / "ratings.csv").write_text("nothing")
    lines: list[str] = []
    assert sequences(read_dataset(tmp_path, lines.append)) == {"u": ["10", "20"]}
    assert "files movies.csv, ratings.csv" in lines[1] and "'userId', 'time'" in lines[1]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_embeddings_in_a_file_of_their_own_are_the_catalogue(tmp_path: Path, ending: str) -> None:
    put(tmp_path, ("ratings.csv", "movies.csv"))
    rows = {"item_id": ["20", "10", "30"], "embedding": [[0.5, 1], [0.25, 2], [1, -1]]}
    path = tmp_path / f"embeddings.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table(rows), path)
    elif ending == "csv":
        path.write_text("item_id,embedding\n20,0.5 1\n10,0.25 2\n30,1 -1\n")
    else:
        path.write_text(
            "".join(json.dumps({"item_id": a, "embedding": b}) + "\n" for a, b in zip(*rows.values(), strict=True))
        )
    lines: list[str] = []
    items = read_dataset(tmp_path, lines.append).items
    assert items.item_ids == ["20", "10", "30"] and items.embeddings is not None
    assert items.embeddings.tolist() == [[0.5, 1.0], [0.25, 2.0], [1.0, -1.0]]
    assert items.attributes["title"] == ["Lamp (1996)", "Tent, The (1995)", ""]
    assert f"1 items of movies.csv, such as '40', that embeddings.{ending} does not list" in lines[1]
    # With semantic IDs as well, these are the catalogue, and the embeddings stay.
    (tmp_path / "index.json").write_text(json.dumps({"10": [1, 2], "20": [3, 4]}))
    items = read_dataset(tmp_path).items
    assert items.item_ids == ["10", "20"] and items.embeddings is not None
    assert items.embeddings.tolist() == [[0.25, 2.0], [0.5, 1.0]] and items.attributes["title"][1] == "Lamp (1996)"


def test_embeddings_in_two_places_are_refused(tmp_path: Path) -> None:
    put(tmp_path, PAIRS[4])
    pq.write_table(pa.table({"item_id": ["10"], "embedding": [[1.0]]}), tmp_path / "embeddings.parquet")
    with pytest.raises(DataError, match=r"both items\.jsonl and embeddings\.parquet have embeddings; drop one"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.5, True], ["1.5", "true"]),
        ([1, "a"], ["1", "a"]),
        ([[1], "a"], ["[1]", "a"]),
        ([1, 2.5], [1.0, 2.5]),
        ([["a"], [], None], [["a"], [], None]),
        ([[1], [], None, ["a", None]], [["1"], [], None, ["a", None]]),
        ([[1], [2.5]], [[1.0], [2.5]]),
        ([float("nan"), None, "é"], [None, None, "é"]),
        ([2**70, 1], [str(2**70), "1"]),
        (["2024-05-01", "2024-05-02"], ["2024-05-01", "2024-05-02"]),
        ([{"a": 1}, "a"], [None, None]),
        ([[{"a": 1}], []], [None, None]),
    ],
)
@pytest.mark.parametrize("part", [1, 5000])
def test_lines_of_a_catalogue_need_not_agree(
    values: list[Any], expected: list[Any], part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not where they are read in parts."""
    monkeypatch.setattr("genrec_builders.data.json_lines._PART", part)
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"item_id": str(i), "x": value}) + "\n" for i, value in enumerate(values)))
    assert read_records(path).column("x").to_pylist() == expected


IDS: dict[str, Any] = {
    "string": pa.array(["10", "20", "30"]),
    "int64": pa.array([10, 20, 30]),
    "uint64": pa.array([10, 20, 30], pa.uint64()),
    "large_string": pa.array(["10", "20", "30"], pa.large_string()),
    "string_view": pa.array(["10", "20", "30"], pa.string_view()),
    "dictionary": pa.array(["10", "20", "30"]).dictionary_encode(),
    "dictionary of int64": pa.array([10, 20, 30]).dictionary_encode(),
    "dictionary of large_string": pa.array(["10", "20", "30"], pa.large_string()).dictionary_encode(),
}
MOMENTS = ["2024-05-03", "2024-05-01T10:00:00", "2024-05-02 23:00"]
TIMES: dict[str, Any] = {
    "int": pa.array([3, 1, 2]),
    "decimal": pa.array([3, 1, 2], pa.decimal128(9, 2)),
    "float": pa.array([3.5, -1.0, 2.0]),
    "text of numbers": pa.array(["3", "1", "2"]),
    "text of floats": pa.array(["3", "1.5", "2e0"]),
    "categories": pa.array(["3", "1", "2"]).dictionary_encode(),
    "ISO": pa.array(MOMENTS),
    "ISO with Z": pa.array(["2024-05-03T00:00:00Z", "2024-05-01T10:00:00.5Z", "2024-05-02T23:00Z"]),
    "ISO with zones": pa.array(["2024-05-03T01:00:00+09:00", "2024-05-02T10:00:00+02:00", "2024-05-02T15:00:00Z"]),
    "ISO in nanoseconds": pa.array([f"2024-05-01T00:00:00.00000000{n}" for n in (3, 1, 2)]),
    "timestamp": pa.array([3, 1, 2], pa.timestamp("ns", "Asia/Tokyo")),
    "date": pa.array([3, 1, 2], pa.date32()),
}


@pytest.mark.parametrize("times", TIMES)
def test_ids_and_times_of_every_type_give_the_same(times: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [30, 20, 10]}), tmp_path / "items.parquet")
    for ids in IDS:
        columns = {"user_id": [7, 7, 7], "item_id": IDS[ids], "timestamp": TIMES[times]}
        pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
        assert sequences(read_dataset(tmp_path)) == {"7": ["20", "30", "10"]}, ids


def test_times_of_two_kinds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrec_builders.data.interactions._ROWS", 1)
    monkeypatch.setattr("genrec_builders.data.table_files._BLOCK", 64)
    (tmp_path / "items.csv").write_text("item_id\nx\n")
    text = "user_id,item_id,timestamp\n" + "u,x,1\n" * 30
    (tmp_path / "interactions.csv").write_text(text + "u,x,2024-05-01\n" * 30)
    with pytest.raises(DataError, match=r"data row 31 has .*2024-05-01"):
        read_dataset(tmp_path)
    (tmp_path / "interactions.csv").write_text(text + "u,x,0.5\n" * 30 + "v,x,\n")
    with pytest.raises(DataError, match="data row 61 has no timestamp"):
        read_dataset(tmp_path)
    (tmp_path / "interactions.csv").write_text(text + "u,x,0.5\n" * 30)
    times = read_dataset(tmp_path).interactions.times
    assert times is not None and times.tolist() == [0.5] * 30 + [1.0] * 30
