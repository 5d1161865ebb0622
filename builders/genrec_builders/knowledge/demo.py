"""`make knowledge-demo`: texts of 200 users of the demo shop, streamed by a real server, and what speculation gains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from genrec.knowledge.model import NO_DRAFTS
from genrec.reporting.progress import track
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import Dataset, read_dataset
from genrec_builders.knowledge.folder import build_folder, is_built, knowledge_fingerprint, training_histories
from genrec_builders.knowledge.texts import split_texts, user_texts
from genrec_client import KnowledgeWriter, TextPiece

USERS, SHOWN, TEXTS_AT_ONCE = 200, 5, 32


def run_knowledge_demo(data: Path, bundle: Path, folder: Path, console: Console) -> None:
    """Build `folder` if need be, serve it beside `bundle`, write and show texts; then the same without drafts."""
    dataset = read_dataset(data)
    if not is_built(folder, knowledge_fingerprint(dataset)):
        with track("knowledge model") as task:
            build_folder(
                dataset,
                folder,
                progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.2f}"),
            )
    histories = dict(list(held_out_histories(dataset).items())[:USERS])
    texts, drafted = served(bundle, folder, "relaxed", list(histories.values()))
    titles = dict(zip(dataset.items.item_ids, dataset.items.attributes["title"], strict=True))
    for (user, history), pieces in list(zip(histories.items(), texts, strict=True))[:SHOWN]:
        console.print(f"[bold]{user}[/bold], last took: {', '.join(titles[item] for item in history[-3:])}")
        console.print("".join(piece.text for piece in pieces), "\n", highlight=False)
    _, plain = served(bundle, folder, NO_DRAFTS, list(histories.values()))
    console.print(
        f"{len(texts)} texts, {TEXTS_AT_ONCE} at once, streamed: {drafted:.0f} tokens per second, and {plain:.0f} from "
        f"the same server without drafts: {drafted / plain:.1f} times as fast"
    )


def held_out_histories(dataset: Dataset) -> Mapping[str, list[str]]:
    """Histories by user, of those whose texts the model was not trained on."""
    held_out = {text.entity for text in split_texts(user_texts(dataset))[1]}
    return {user: history for user, history in training_histories(dataset).items() if user in held_out}


def served(
    bundle: Path, folder: Path, verification: str, histories: Sequence[Sequence[str]]
) -> tuple[list[list[TextPiece]], float]:
    """The texts of `histories` from a server of `folder`, asked for by as many as it writes at once; tokens per second.

    The rate is what a client sees that runs on the same machine.
    """
    deployment = Deployment(threads=1, knowledge=folder, verification=verification, texts_at_once=TEXTS_AT_ONCE)
    with (
        serve_bundle(bundle, deployment, log_path=folder.parent / "triton.log") as server,
        KnowledgeWriter(server.grpc_url, timeout_s=600.0) as writer,
        ThreadPoolExecutor(TEXTS_AT_ONCE) as askers,
    ):
        list(writer.user(histories[0]))  # warm-up
        began = time.perf_counter()
        texts = list(askers.map(lambda history: list(writer.user(history)), histories))
        return texts, sum(pieces[-1].tokens for pieces in texts) / (time.perf_counter() - began)
