"""`make knowledge-demo`: texts of 200 users of the demo shop, streamed by a real server, and what speculation gains."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from genrec.knowledge.decoder import GREEDY
from genrec.knowledge.model import KnowledgeModel
from genrec.reporting.progress import track
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.folder import build_folder, is_built, knowledge_fingerprint, training_histories
from genrec_builders.knowledge.texts import split_texts, user_texts
from genrec_client import KnowledgeWriter

USERS, SHOWN, TEXTS_AT_ONCE = 200, 5, 32


def run_knowledge_demo(data: Path, bundle: Path, folder: Path, console: Console) -> None:
    """Build `folder` if need be, serve it beside `bundle`, write and show texts, compare with plain decoding."""
    dataset = read_dataset(data)
    if not is_built(folder, knowledge_fingerprint(dataset)):
        with track("knowledge model") as task:
            build_folder(
                dataset,
                folder,
                progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.2f}"),
            )
    # Users whose texts the model was not trained on.
    held_out = {text.entity for text in split_texts(user_texts(dataset))[1]}
    known = {user: history for user, history in training_histories(dataset).items() if user in held_out}
    histories = dict(list(known.items())[:USERS])
    deployment = Deployment(threads=1, knowledge=folder, texts_at_once=TEXTS_AT_ONCE)
    with serve_bundle(bundle, deployment, log_path=folder.parent / "triton.log") as server:
        with KnowledgeWriter(server.grpc_url, timeout_s=600.0) as writer, ThreadPoolExecutor(TEXTS_AT_ONCE) as askers:
            list(writer.user(next(iter(histories.values()))))  # warm-up
            began = time.perf_counter()
            written = list(askers.map(lambda history: list(writer.user(history)), histories.values()))
            served = sum(pieces[-1].tokens for pieces in written) / (time.perf_counter() - began)
    titles = dict(zip(dataset.items.item_ids, dataset.items.attributes["title"], strict=True))
    for (user, history), pieces in list(zip(histories.items(), written, strict=True))[:SHOWN]:
        console.print(f"[bold]{user}[/bold], last took: {', '.join(titles[item] for item in history[-3:])}")
        console.print("".join(piece.text for piece in pieces), "\n", highlight=False)

    model = KnowledgeModel(folder)
    with track("the same without drafts") as task:
        session = model.decoder(GREEDY, TEXTS_AT_ONCE, drafter=None).session()
        for history in histories.values():
            session.submit(model.user_request(history))
        while session.pending:
            session.step()
            task(session.statistics.texts, len(histories), "texts")
    plain = session.statistics.tokens / session.statistics.total_s
    console.print(
        f"{len(written)} texts, {TEXTS_AT_ONCE} at once: {served:.0f} tokens per second through the server, "
        f"{plain:.0f} decoded one token at a time in the library: {served / plain:.1f} times as fast"
    )
