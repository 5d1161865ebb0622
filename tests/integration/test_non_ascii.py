"""Names that are not ASCII, everywhere at once: Triton starts Python in the C locale, whatever the environment says."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from genrec.bundle import Bundle
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.texts import GREEDY
from genrec.pipeline import Pipeline
from genrec.reporting.progress import Track
from genrec.serving.repository import MODEL, Deployment, render_repository
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import ServerTls, TritonServer
from genrec_builders.build import build_bundle
from genrec_builders.config import BuildConfig
from genrec_builders.data import Dataset
from genrec_client import KnowledgeWriter, Recommender
from genrec_client.channel import TlsOptions
from tests.near import NEAR, narrowest_choice

NAME = "Bücher & 書籍 \N{OPEN BOOK}"
PREFIX = "żółć-"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the worst of names."""
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
def test_bundle_items_knowledge_tls_log_and_scratch_may_have_any_name(
    books: Bundle, shelf: Path, knowledge_folder: Path, deployment: Deployment, certificate: tuple[Path, Path]
) -> None:
    texts = Path(shutil.copytree(knowledge_folder, shelf / "knowledge"))
    deployed = replace(deployment, knowledge=texts, verification="greedy")
    cert, key = (Path(shutil.copy(file, shelf)) for file in certificate)
    model, log = KnowledgeModel(texts), shelf / "журнал.log"
    ids = [item.decode() for item in books.catalog.item_ids[:30]]
    for at in range(0, len(ids), 3):  # a text in which no choice nearly ties is the same from a server
        history = ids[at : at + 3]
        request = model.user_request(plain_ids := [item.removeprefix(PREFIX) for item in history])
        (plain,) = model.decoder(GREEDY, 1, drafter=None).generate([request])
        written = [*request.prompt.tolist(), *plain.tokens.tolist()]
        if narrowest_choice(model.language_model, written, len(request.prompt)) > NEAR:
            break
    else:
        pytest.fail("every text nearly ties")
    with serve_bundle(books.path, deployed, tls=ServerTls(cert, key), log_path=log) as server:
        trust = TlsOptions(str(cert))
        with Recommender(server.grpc_url, tls=trust, timeout_s=30.0) as client:
            answer = client.recommend(history, top_k=10)
        with KnowledgeWriter(server.grpc_url, tls=trust, timeout_s=60.0) as writer:
            text = "".join(piece.text for piece in writer.user(plain_ids))
    (expected,) = Pipeline.open(books.path).recommend([history], top_k=10)
    assert list(answer.item_ids) == expected.item_ids
    assert all(item.startswith(PREFIX) for item in answer.item_ids) and answer.unknown_history == 0
    assert text == model.text(plain.tokens)
    assert log.stat().st_size > 0


def test_a_rendered_repository_needs_nothing_of_the_launcher(books: Bundle, tmp_path: Path) -> None:
    repository = render_repository(books, tmp_path / "models", Deployment(threads=1))
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}
    with TritonServer(repository, [MODEL], env=plain, log_path=tmp_path / "log") as server:
        assert server.is_running
    assert str(books.path) in (tmp_path / "log").read_text()


def test_a_name_that_is_not_utf8_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xe9")
    odd.symlink_to(bundle.path)
    shutil.copytree(bundle.path, real := tmp_path / os.fsdecode(b"real\xe9"))
    with pytest.raises(ValueError, match=r"real\\udce9': this name is not UTF-8.*; rename it"):
        render_repository(Bundle(real), tmp_path / "models", Deployment())
    render_repository(Bundle(odd), tmp_path / "models", Deployment())  # what counts is where the link leads
