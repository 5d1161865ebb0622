"""Columns of JSON Lines that begin late."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from genrec_builders.data import json_lines, read_dataset
from genrec_builders.data.json_lines import types_of_lines

PLAIN = {"user_id": "u", "item_id": "x", "timestamp": 1}
LATE = 10_123  # lines before the first query
ITEMS = '{"item_id": "x", "sid": "1-2"}\n{"item_id": "y", "sid": "0-5"}\n'


def written(path: Path, records: list[dict]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("searched", [1, 1000, 16 << 20])  # bytes, so that the key lies at every place of a block
def test_a_rare_column_counts_wherever_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, searched: int
) -> None:
    monkeypatch.setattr(json_lines, "_SEARCHED", searched)
    records = [PLAIN] * LATE + [PLAIN | {"query": None}, PLAIN | {"query": "red tent", "other": 1}, PLAIN]
    path = written(tmp_path / f"a{ending}", records)
    plain = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()}
    assert types_of_lines(path, ("query",)) == plain | {"query": pa.string()}
    assert types_of_lines(path) == types_of_lines(path, ("brand",)) == plain


def test_a_query_that_begins_late_is_read(tmp_path: Path) -> None:
    events = [{"user_id": f"u{at}", "item_id": "xy"[at % 2], "timestamp": at} for at in range(LATE)]
    written(tmp_path / "interactions.jsonl", [*events, events[0] | {"timestamp": LATE, "query": "red tent"}])
    (tmp_path / "items.jsonl").write_text(ITEMS)
    queries = read_dataset(tmp_path).interactions.queries
    assert queries is not None and set(queries.to_pylist()) == {"", "red tent"}


def test_a_late_line_that_is_no_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [PLAIN] * LATE)
    with path.open("a") as file:
        file.write('{"user_id": "u", "query": red}\n')
    with pytest.raises(ValueError, match=f"line {LATE + 1} is not JSON"):
        types_of_lines(path, ("query",))
