"""The model `knowledge` in a real server: streams of texts, cancellation, refusals, beside `recommend`."""

from __future__ import annotations

import contextlib
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from genrec.bundle import Bundle
from genrec.knowledge.model import KnowledgeModel
from genrec.knowledge.texts import GREEDY
from genrec.serving.repository import Deployment, render_repository
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonServer
from genrec_builders.data import Dataset
from genrec_client import InvalidRequest, KnowledgeWriter, Recommender, RecommendError
from genrec_client.wire import build_text_request, parse_text_piece
from tests.near import NEAR, narrowest_choice
from tests.processes import descendants


@pytest.fixture(scope="module")
def server(bundle: Bundle, knowledge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    deployment = Deployment(threads=1, timeout_ms=30_000, knowledge=knowledge_folder, verification="greedy")
    log = tmp_path_factory.mktemp("knowledge") / "triton.log"
    with serve_bundle(bundle.path, deployment, log_path=log) as running:
        yield running


@pytest.fixture(scope="module")
def writer(server: TritonServer) -> Iterator[KnowledgeWriter]:
    with KnowledgeWriter(server.grpc_url, timeout_s=60.0) as client:
        yield client


def texts_that(server: TritonServer, outcome: str) -> float:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        page = answer.read().decode()
    return float(re.findall(rf'^genrec_texts_total{{outcome="{outcome}"}} (\S+)$', page, flags=re.M)[0])


@pytest.fixture(scope="module")
def histories(dataset: Dataset) -> list[list[str]]:
    return [dataset.items.item_ids[at : at + 4] for at in range(0, 80, 4)]


@pytest.fixture(scope="module")
def clear(knowledge_folder: Path, dataset: Dataset, histories: list[list[str]]) -> dict[int, str]:
    """The library's greedy texts of the histories and then of ten items, by place.

    Those in which choices nearly tie are left out: in batches of other shapes they may turn out another way.
    """
    model = KnowledgeModel(knowledge_folder)
    requests = [*map(model.user_request, histories), *map(model.item_request, dataset.items.item_ids[:10])]
    found: dict[int, str] = {}
    for text in model.decoder(GREEDY, 1, drafter=None).generate(requests):
        prompt = requests[text.index].prompt.tolist()
        if narrowest_choice(model.language_model, prompt + text.tokens.tolist(), len(prompt)) > NEAR:
            found[text.index] = model.text(text.tokens)
    assert len(found) >= 20 and min(found) < len(histories)
    return found


def test_streamed_texts_are_the_librarys(
    writer: KnowledgeWriter, dataset: Dataset, histories: list[list[str]], clear: dict[int, str]
) -> None:
    """Many at once, users and items, through the server's pools and batches: greedy decoding one by one."""
    with ThreadPoolExecutor(8) as askers:
        users = askers.map(lambda history: list(writer.user(history)), histories)
        items = askers.map(lambda item: list(writer.item(item)), dataset.items.item_ids[:10])
        pieces = [*users, *items]
    assert {number: "".join(piece.text for piece in pieces[number]) for number in clear} == clear
    assert any(len(text) > 1 for text in pieces), "all texts came whole, not as streams"
    assert all(one.tokens < two.tokens for text in pieces for one, two in pairwise(text))


def test_a_text_comes_whole_on_request(
    writer: KnowledgeWriter, histories: list[list[str]], clear: dict[int, str]
) -> None:
    user = min(clear)
    pieces = list(writer.user(histories[user]))
    assert len(pieces) > 1
    (whole,) = writer.user(histories[user], stream=False)
    assert whole.text == clear[user] == "".join(piece.text for piece in pieces) and whole.tokens == pieces[-1].tokens


def test_max_new_tokens(writer: KnowledgeWriter, dataset: Dataset) -> None:
    *_, last = writer.item(dataset.items.item_ids[0], max_new_tokens=5)
    assert last.tokens == 5


def test_closing_a_stream_stops_its_work(server: TritonServer, writer: KnowledgeWriter, dataset: Dataset) -> None:
    """Of many streams, of which some could be done before anybody hears that they are closed."""
    messages = [build_text_request("knowledge", None, item, 192) for item in dataset.items.item_ids[:60]]
    before = texts_that(server, "cancelled")
    with grpc.insecure_channel(server.grpc_url) as channel:
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        streams = [ask(iter([message]), timeout=60) for message in messages]
        next(streams[0])
        for stream in streams:
            stream.cancel()
    deadline = time.monotonic() + 20
    while texts_that(server, "cancelled") < before + len(messages) // 4:  # some were not sent yet
        assert time.monotonic() < deadline, texts_that(server, "cancelled") - before
        time.sleep(0.1)
    assert list(writer.item(dataset.items.item_ids[0], max_new_tokens=3))[-1].tokens == 3


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda writer, item: writer.user([]), "history has 0 items; a user's text needs at least 1"),
        (lambda writer, item: writer.user(["nobody"]), "history has 1 items, such as 'nobody', and none is in the cat"),
        (lambda writer, item: writer.item("nothing"), "item 'nothing' is not in the catalogue of 400"),
        (lambda writer, item: writer.item(b"\xff\xfe"), r"item holds b'\xff\xfe', which is not UTF-8"),
        (lambda writer, item: writer.user([item, b"\xc3("]), r"history holds b'\xc3(', which is not UTF-8"),
        (lambda writer, item: writer.item(item, max_new_tokens=0), "max_new_tokens is 0; it must be 1 to 192"),
        (lambda writer, item: writer.item(item, max_new_tokens=193), "max_new_tokens is 193; it must be 1 to 192"),
        (lambda writer, item: writer.user([item] * 1025), "history has 1025 items; at most 1024 are accepted"),
    ],
)
def test_what_cannot_be_written_is_refused(writer: KnowledgeWriter, dataset: Dataset, ask, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        list(ask(writer, dataset.items.item_ids[0]))
    assert refused.value.code == "INVALID_ARGUMENT" and says in refused.value.message


def test_unknown_items_of_a_history_are_skipped(
    writer: KnowledgeWriter, histories: list[list[str]], clear: dict[int, str]
) -> None:
    user = min(clear)
    history = [histories[user][0], "nothing", *histories[user][1:]]
    assert "".join(piece.text for piece in writer.user(history)) == clear[user]


def test_a_deadline_ends_a_text(server: TritonServer, dataset: Dataset) -> None:
    with KnowledgeWriter(server.grpc_url, timeout_s=0.001) as impatient, pytest.raises(RecommendError) as late:
        list(impatient.user(dataset.items.item_ids[:3]))
    assert late.value.code == "DEADLINE_EXCEEDED"


def test_recommendations_come_from_the_same_server(server: TritonServer, dataset: Dataset) -> None:
    with Recommender(server.grpc_url, timeout_s=30.0) as recommender:
        assert len(recommender.recommend(dataset.items.item_ids[:3]).items) == 10


def test_a_reader_that_reads_nothing_holds_up_nobody_and_loses_nothing(
    server: TritonServer, writer: KnowledgeWriter, dataset: Dataset
) -> None:
    """Many texts in one stream, of which none is read until all others are done."""
    texts = 150
    messages = [build_text_request("knowledge", None, dataset.items.item_ids[at], 24) for at in range(texts)]
    before, written = memory_of(server), texts_that(server, "written")
    with grpc.insecure_channel(server.grpc_url) as channel:
        unread = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(messages), timeout=60)
        for at in range(3):
            assert list(writer.item(dataset.items.item_ids[at], max_new_tokens=8))[-1].tokens == 8
        deadline = time.monotonic() + 30
        while texts_that(server, "written") < written + texts + 3:  # they are written, whoever reads them
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert memory_of(server) - before < 64 << 20
        last = 0
        for response in unread:
            assert not response.error_message
            if parse_text_piece(response.infer_response)[1] == 24:
                last += 1
                if last == texts:
                    break
        unread.cancel()
    assert last == texts


def memory_of(server: TritonServer) -> int:
    """Bytes that the server and its Python processes have in memory."""
    assert server.pid is not None
    resident = 0
    for pid in (server.pid, *descendants(server.pid)):
        with contextlib.suppress(OSError):
            resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident


def test_a_server_without_drafts_writes_the_same(
    bundle: Bundle, knowledge_folder: Path, tmp_path: Path, histories: list[list[str]], clear: dict[int, str]
) -> None:
    deployment = Deployment(threads=1, knowledge=knowledge_folder, verification="none")
    repository = render_repository(bundle, tmp_path / "models", deployment)
    user = min(clear)
    with (
        TritonServer(repository, ["knowledge"], log_path=tmp_path / "triton.log") as plain,
        KnowledgeWriter(plain.grpc_url, timeout_s=60.0) as asker,
    ):
        assert "".join(piece.text for piece in asker.user(histories[user])) == clear[user]
