"""How fast a server writes knowledge texts, against the library alone in a process of its own.

python -m perf.knowledge.served build/shop-bundle build/knowledge build/shop build/knowledge-served

Every round runs the library and then the server, with the same texts, as many at once, on an otherwise idle machine.
The client is a process of its own on the same processors, and its processor time is told apart:

- tokens per second as the client sees them;
- "client apart": the same in the time less the client's processor seconds. Decoding uses all processors in step, so
  what one of them does for others holds up all: a process that burns some time costs decoding at least as much;
- tokens per processor second, of the library's process, and of the server's with all that it started.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from genrec.knowledge.model import NO_DRAFTS, RELAXED, KnowledgeModel
from genrec.reporting.machine import provenance
from genrec.reporting.page import markdown_table
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.demo import held_out_histories
from genrec_client import KnowledgeWriter
from perf.speed.usage import processor_seconds

LIBRARY, STREAMED, WHOLE, PLAIN = "library", "server, streamed", "server, whole texts", "server, without drafts"


@dataclass(frozen=True)
class Written:
    """What was written: tokens in how many pieces, in how many seconds.

    processor_s: processor seconds of what wrote it; client_s: of the client; 0 for the library. first_s: median
    seconds until a text's first piece.
    """

    tokens: int
    pieces: int
    seconds: float
    processor_s: float
    client_s: float
    first_s: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def client_apart(self) -> float:
        """Tokens per second in the time less the client's processor seconds."""
        return self.tokens / (self.seconds - self.client_s)

    @property
    def per_processor_s(self) -> float:
        return self.tokens / self.processor_s


def library_run(folder: Path, histories: Sequence[Sequence[str]], at_once: int) -> Written:
    """All texts by the library."""
    model = KnowledgeModel(folder)
    decoder = model.decoder(RELAXED, at_once, grow=True)
    list(decoder.generate([model.user_request(histories[0])]))  # warm-up, as of the server
    requests = [model.user_request(history) for history in histories]
    began, spent = time.perf_counter(), processor_seconds(os.getpid())
    texts = list(decoder.generate(requests))
    seconds = time.perf_counter() - began
    tokens = sum(text.tokens.size for text in texts)
    return Written(tokens, len(texts), seconds, processor_seconds(os.getpid()) - spent, 0.0, 0.0)


def client_run(url: str, server: int, histories: Sequence[Sequence[str]], at_once: int, stream: bool) -> Written:
    """All texts from the server with process id `server`, by as many askers as texts at once."""

    def ask(history: Sequence[str]) -> tuple[float, int, int]:
        asked, coming = time.perf_counter(), writer.user(history, stream=stream)
        first = next(coming)
        waited, pieces = time.perf_counter() - asked, [first, *coming]
        return waited, pieces[-1].tokens, len(pieces)

    with KnowledgeWriter(url, timeout_s=600.0) as writer, ThreadPoolExecutor(at_once) as askers:
        ask(histories[0])
        own, theirs = os.times(), processor_seconds(server)
        began = time.perf_counter()
        firsts, tokens, pieces = zip(*askers.map(ask, histories), strict=True)
        seconds, now = time.perf_counter() - began, os.times()
        client_s = now.user + now.system - own.user - own.system
        spent = processor_seconds(server) - theirs
    return Written(sum(tokens), sum(pieces), seconds, spent, client_s, median(firsts))


def in_a_process(call: Callable[..., Written], *arguments: Any) -> Written:
    """What `call` returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(call, *arguments).result()


def table(found: dict[str, list[Written]]) -> list[str]:
    """Medians over the rounds as lines of Markdown; ratios are medians of the rounds' ratios."""
    columns = ("", "tokens/s", "client apart", "per processor s", "of the library's", "client apart", "per processor s")
    kinds: list[Callable[[Written], float]] = [
        lambda run: run.rate,
        lambda run: run.client_apart,
        lambda run: run.per_processor_s,
    ]
    rows = []
    for name, runs in found.items():
        pairs = list(zip(runs, found[LIBRARY], strict=True))
        rates = (f"{median(map(kind, runs)):.0f}" for kind in kinds)
        ratios = (f"{median(kind(run) / kind(own) for run, own in pairs):.2f}" for kind in kinds)
        rows.append((name, *rates, *ratios))
    return markdown_table(columns, rows)


def main(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is served beside.")],
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The dataset that it was built on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results.")],
    users: Annotated[int, typer.Option(min=1, help="Held-out users whose texts are written.")] = 200,
    at_once: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
) -> None:
    """Compare the library, the server with and without streams, and the server without drafts."""
    out.mkdir(parents=True, exist_ok=True)
    histories = list(held_out_histories(read_dataset(data)).values())[:users]
    ways = {STREAMED: ("relaxed", True), WHOLE: ("relaxed", False), PLAIN: (NO_DRAFTS, True)}
    found: dict[str, list[Written]] = {name: [] for name in (LIBRARY, *ways)}
    for _ in range(rounds):
        found[LIBRARY].append(in_a_process(library_run, folder, histories, at_once))
        for name, (verification, stream) in ways.items():
            deployment = Deployment(threads=1, knowledge=folder, verification=verification, texts_at_once=at_once)
            with serve_bundle(bundle, deployment, log_path=out / "triton.log") as server:
                told = (server.grpc_url, server.pid, histories, at_once, stream)
                found[name].append(in_a_process(client_run, *told))
    lines = table(found)
    print("\n".join(lines))
    runs = {name: [asdict(run) for run in runs] for name, runs in found.items()}
    results = {"runs": runs, **provenance(users=users, at_once=at_once, rounds=rounds)}
    (out / "served.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "served.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
