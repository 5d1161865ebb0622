"""Names that are not ASCII, everywhere at once: Triton starts Python in the C locale, whatever the environment says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.knowledge.decoder import GREEDY
from genrec.knowledge.model import KnowledgeModel
from genrec.pipeline import Pipeline
from genrec.reporting.progress import Track
from genrec.serving.repository import Deployment, render_repository
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import ServerTls, TritonNotFoundError, TritonServer, find_triton
from genrec_builders.build import build_bundle
from genrec_builders.config import BuildConfig
from genrec_builders.data import Dataset
from genrec_client import KnowledgeWriter, Recommender
from genrec_client.channel import TlsOptions

NAME = "Bücher & 書籍 \N{OPEN BOOK}"
PREFIX = "żółć-"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the worst of names."""
    try:
        find_triton()
    except TritonNotFoundError as error:
        pytest.skip(str(error))
    return Path(tmp_path_factory.mktemp("shelf"), NAME)


@pytest.fixture(scope="module")
def books(shelf: Path, dataset: Dataset, tiny_build: tuple[BuildConfig, Track]) -> Bundle:
    """A bundle whose folder and items have such names."""
    config, track = tiny_build
    items = replace(dataset.items, item_ids=[PREFIX + item for item in dataset.items.item_ids])
    training = replace(config.training, epochs=1)
    build_bundle(replace(dataset, items=items), shelf / "bundle", replace(config, training=training), track)
    return Bundle(shelf / "bundle")


@pytest.fixture
def scratch_elsewhere(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders, too, lie in a folder of that name."""
    folder = shelf / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.usefixtures("scratch_elsewhere")
def test_bundle_knowledge_log_and_scratch_may_have_any_name(
    books: Bundle, shelf: Path, knowledge_folder: Path, deployment: Deployment
) -> None:
    texts = Path(shutil.copytree(knowledge_folder, shelf / "knowledge"))
    deployed = replace(deployment, knowledge=texts, verification="greedy")
    history = list(books.catalog.item_ids[:3])
    log = shelf / "журнал.log"
    with serve_bundle(books.path, deployed, log_path=log) as server:
        with Recommender(server.grpc_url, timeout_s=30.0) as client:
            answer = client.recommend(history, top_k=10)
        with KnowledgeWriter(server.grpc_url, timeout_s=60.0) as writer:
            model = KnowledgeModel(texts)
            item = next(iter(model.attributes_of_ids())) if hasattr(model, "attributes_of_ids") else None
            pieces = "".join(piece.text for piece in writer.user([])) if item is None else ""
    (expected,) = Pipeline.open(books.path).recommend([history], top_k=10)
    assert list(answer.item_ids) == expected.item_ids and all(id_.startswith(PREFIX) for id_ in answer.item_ids)
    assert pieces
    assert log.stat().st_size > 0
