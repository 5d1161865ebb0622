"""The two commands of the README, on small data, as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genrec_builders.data import Dataset
from genrec_builders.semantic_ids import fit_residual_kmeans


@pytest.fixture(scope="module")
def json_data(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo shop in the JSON form: integer items, semantic IDs as tokens."""
    folder = tmp_path_factory.mktemp("data") / "letter-form"
    folder.mkdir()
    embeddings = dataset.items.embeddings
    assert embeddings is not None
    sids = fit_residual_kmeans(embeddings, (16, 16, 16)).encode(embeddings)
    index = {str(row): [f"<{'abc'[level]}_{code}>" for level, code in enumerate(sid)] for row, sid in enumerate(sids)}
    offsets, rows = dataset.interactions.offsets, dataset.interactions.rows
    inter = {str(user): rows[offsets[user] : offsets[user + 1]].tolist() for user in range(len(offsets) - 1)}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "inter.json").write_text(json.dumps(inter))
    return folder


def test_demo_on_json_data_builds_once_and_reports_the_same_quality_served(json_data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "genrec.cli",
        "demo",
        "--data",
        str(json_data),
        "--work",
        str(tmp_path),
    ]

    def run() -> str:
        done = subprocess.run([*command, "--epochs", "1"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    manifest = (tmp_path / "letter-form-bundle" / "manifest.json").read_text()
    assert "most popular items" in first
    served = re.search(r"served Hit@10 ([\d.]+) NDCG@10 ([\d.]+), offline Hit@10 ([\d.]+)\s+NDCG@10 ([\d.]+)", first)
    assert served is not None, first
    assert np.allclose(float(served[1]), float(served[3]), atol=0.01)
    (same,) = re.findall(r"same ten items for ([\d.]+)%", first)
    assert float(same) > 97  # lists with items that nearly tie may differ, because the server batches otherwise
    assert re.search(r"preprocessing [\d.]+, backbone [\d.]+, verifier [\d.]+", first)
    assert re.search(
        r"new-item, alike \d+, was added while the server ran .* recommended at place \d+ after \d+ ms", first
    )
    assert len(re.findall(r"^ *\d+\*? +\d+ .*(?:-\d+\.\d{3}|popular) *$", first, flags=re.M)) == 10
    run()
    assert (tmp_path / "letter-form-bundle" / "manifest.json").read_text() == manifest, "the second run built again"
