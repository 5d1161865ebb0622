"""How much faster speculative decoding writes knowledge texts, whether they stay the same, and what large pools cost.

python -m perf.knowledge.compare compare build/knowledge build/shop build/knowledge-bench    # against its baselines
python -m perf.knowledge.compare equality build/knowledge build/shop                         # with plain greedy decoding
python -m perf.knowledge.compare pool build/knowledge build/shop                             # of a million texts

Texts are those of held-out users and items of the demo shop: none of them is in the folder's pools.
"""

from __future__ import annotations

import datetime
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console

from genrec.knowledge.decoder import GREEDY, Generated, Request, Verification
from genrec.knowledge.drafter import Drafter, PoolDrafter, PromptLookupDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.knowledge.pool import RetrievalPool, draft_trees
from genrec.knowledge.pools import GLOBAL
from genrec.reporting.machine import this_commit, this_machine
from genrec.reporting.timing import in_turn, median_ratio
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.folder import training_histories
from genrec_builders.knowledge.texts import KnowledgeText, item_texts, split_texts, user_texts

BASELINE, RESD, DARE = "autoregressive", "global pool, greedy (ReSD)", "group pools, relaxed (DARE)"
_COLUMNS = ("batch", "tokens/s", "speed-up", "tokens/step", "accepted", "outside model", "texts differ")
app = typer.Typer(help=__doc__)
console = Console()
Way = tuple[Drafter | None, Verification]
Cell = tuple[str, int]  # name of a way, batch size


class Of(str, Enum):
    """Whose texts are written."""

    both, users, items = "both", "users", "items"


def ways(model: KnowledgeModel) -> dict[str, Way]:
    """What is compared, by name."""
    pools = model.pools
    return {
        BASELINE: (None, GREEDY),
        "prompt lookup, greedy": (PromptLookupDrafter(), GREEDY),
        RESD: (PoolDrafter(pools, grouped=False), GREEDY),
        "group pools, greedy": (PoolDrafter(pools), GREEDY),
        DARE: (PoolDrafter(pools), RELAXED),
    }


def ablations(model: KnowledgeModel) -> dict[str, Way]:
    """DARE with one thing changed."""
    pools = model.pools
    changed: dict[str, Way] = {"one global pool": (PoolDrafter(pools, grouped=False), RELAXED)}
    changed |= {
        f"k {k}, threshold {threshold}": (PoolDrafter(pools), Verification(k, threshold))
        for k, threshold in ((2, 0.05), (2, 0.2), (2, 0.3), (3, 0.1))
    }
    changed |= {f"trees of {nodes}": (PoolDrafter(pools, max_nodes=nodes), RELAXED) for nodes in (4, 8, 32, 64)}
    return changed | {
        f"share at least {share}": (PoolDrafter(pools, min_share=share), RELAXED) for share in (0.0, 0.05, 0.2, 0.4)
    }


def held_out_requests(
    model: KnowledgeModel, data: Path, entities: int, of: Of = Of.both, seed: int = 0
) -> list[Request]:
    """Of users and items that the language model was not trained on, half of each or `of` one kind only."""
    dataset = read_dataset(data)
    histories = training_histories(dataset)
    draw = np.random.default_rng(seed)
    requests = []
    kinds = [kind for kind in (Of.users, Of.items) if of in (kind, Of.both)]
    for kind in kinds:
        # Who is held out does not depend on how hard the texts are.
        texts = user_texts(dataset) if kind is Of.users else item_texts(dataset)
        held_out = [text.entity for text in split_texts(texts)[1]]
        for entity in draw.permutation(held_out)[: entities // len(kinds)].tolist():
            requests.append(model.user_request(histories[entity]) if kind is Of.users else model.item_request(entity))
    return requests


def measure(model: KnowledgeModel, way: Way, batch_size: int, requests: Sequence[Request]) -> dict[str, Any]:
    """One run over all requests: speed, and the tokens of every text under `texts`."""
    drafter, verification = way
    session = model.decoder(verification, batch_size, drafter=drafter).session()
    for request in requests:
        session.submit(request)
    done: dict[int, Generated] = {}
    began = time.perf_counter()
    while session.pending:
        done |= {step.index: step.finished for step in session.step() if step.finished}
    seconds = time.perf_counter() - began
    statistics = session.statistics
    return {
        "batch_size": batch_size,
        "tokens_per_s": statistics.tokens / seconds,
        "tokens_per_step": statistics.tokens_per_step,
        "outside_model": 1 - statistics.llm_s / seconds,
        "drafted": sum(statistics.drafted_by_depth.values()),
        "accepted": sum(statistics.accepted_by_depth.values()),
        "accepted_by_depth": statistics.accepted_by_depth,
        "drafted_by_depth": statistics.drafted_by_depth,
        "texts": [done[index].tokens.tolist() for index in range(len(requests))],
    }


def in_rounds(
    model: KnowledgeModel, cells: Mapping[Cell, Way], requests: Sequence[Request], rounds: int
) -> dict[Cell, dict[str, Any]]:
    """`measure` of every cell, a way and its batch size, in turn, round by round: a machine that slows down slows all.

    Speed and share of time are medians, `rates` the speed of every round; counts and texts are the same in all.
    """
    calls = {cell: (way, cell[1]) for cell, way in cells.items()}
    runs = in_turn(calls, rounds, lambda call: measure(model, *call, requests), warm_up=0)
    return {
        cell: found[0]
        | {name: median(run[name] for run in found) for name in ("tokens_per_s", "outside_model")}
        | {"rates": [run["tokens_per_s"] for run in found]}
        for cell, found in runs.items()
    }


def speed_up(cell: dict[str, Any], baseline: dict[str, Any]) -> float:
    return median_ratio(cell["rates"], baseline["rates"])


def differing(texts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> int:
    """Texts that are not the plain ones, token for token."""
    return sum(text != other for text, other in zip(texts, plain, strict=True))


def lookup_ms(pool: RetrievalPool, texts: Sequence[Sequence[int]], at_once: int) -> dict[str, float]:
    """Quantiles of a lookup in `pool` at every tenth token of `texts`, drawn `at_once` together; in ms for each."""
    running = [np.array(text[:size], np.int32) for text in texts for size in range(1, len(text), 10)]
    order = np.random.default_rng(0).permutation(len(running))
    times = []
    for begin in range(0, len(running) - at_once + 1, at_once):
        drawn = [running[at] for at in order[begin : begin + at_once].tolist()]
        began = time.perf_counter()
        draft_trees([pool] * at_once, drawn, [12] * at_once, max_nodes=16, min_share=0.1, discount=0.3)
        times.append(1e3 * (time.perf_counter() - began) / at_once)
    return {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Tokens per second over the batch size, a line per way of drafting."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, cells in runs.items():
        axes.plot(
            [cell["batch_size"] for cell in cells], [cell["tokens_per_s"] for cell in cells], marker="o", label=name
        )
    axes.set(xscale="log", xlabel="texts at once", ylabel="tokens per second", ylim=0)
    sizes = [cell["batch_size"] for cell in runs[BASELINE]]
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results.")],
    entities: Annotated[int, typer.Option(min=2)] = 128,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "8,32,64",
    rounds: Annotated[int, typer.Option(min=1, help="In which everything is measured once, in turn.")] = 3,
    threads: Annotated[int, typer.Option(help="Of PyTorch; 0 for one per core.")] = 0,
    of: Annotated[Of, typer.Option(help="Whose texts.")] = Of.both,
    ablate: Annotated[bool, typer.Option(help="Ablations too, at the best batch size.")] = True,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Measure every way of drafting at every batch size, in turn, each to be judged at its best; then DARE's ablations.

    Prints tables and writes tables.md, results.json and speed.svg. Harder texts are those of a folder built so.
    """
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities, of, seed)
    sizes = [int(size) for size in batch_sizes.split(",")]
    compared = ways(model)
    measure(model, compared[DARE], sizes[-1], requests[: sizes[-1]])  # warm-up
    cells = in_rounds(model, {(name, size): compared[name] for size in sizes for name in compared}, requests, rounds)
    runs = {name: [cells[name, size] for size in sizes] for name in compared}
    plain = {cell["batch_size"]: cell["texts"] for cell in runs[BASELINE]}
    best = {name: max(found, key=lambda cell: cell["tokens_per_s"]) for name, found in runs.items()}
    tries, base = {}, best[BASELINE]
    if ablate:
        size = best[DARE]["batch_size"]
        changed = {(name, size): way for name, way in ({DARE: compared[DARE]} | ablations(model)).items()}
        changed[BASELINE, base["batch_size"]] = compared[BASELINE]
        tries = {name: cell for (name, _), cell in in_rounds(model, changed, requests, rounds).items()}
    everything = model.pools.by_group[GLOBAL]
    lookup = {at_once: lookup_ms(everything, plain[sizes[0]], at_once) for at_once in (1, 16)}

    def table(title: str, rows: dict[str, dict[str, Any]], base: dict[str, Any]) -> list[str]:
        shown = [f"{title}:", "", f"| | {' | '.join(_COLUMNS)} |", f"| --- |{' ---: |' * len(_COLUMNS)}"]
        for name, cell in rows.items():
            cell["speed_up"] = speed_up(cell, base)
            cell["texts_differ"] = differing(cell["texts"], plain[cell["batch_size"]])
            shown.append(
                f"| {name} | {cell['batch_size']} | {cell['tokens_per_s']:.0f} | {cell['speed_up']:.2f} | "
                f"{cell['tokens_per_step']:.2f} | {cell['accepted'] / max(1, cell['drafted']):.2f} | "
                f"{cell['outside_model']:.0%} | {cell['texts_differ']} |"
            )
        return [*shown, ""]

    tables = table(f"{len(requests)} texts, each way at its best batch size", best, base)
    for size in sizes:
        at = {name: next(cell for cell in cells if cell["batch_size"] == size) for name, cells in runs.items()}
        tables += table(f"{size} at once", at, base)
    if tries:
        tables += table("DARE with one thing changed, measured again with its baseline", tries, tries[BASELINE])
    tables.append(f"DARE against ReSD: {speed_up(best[DARE], best[RESD]):.2f}.")
    for at_once, times in lookup.items():
        quantiles = ", ".join(f"{name} {value}" for name, value in times.items())
        tables.append(f"Lookup in a pool of {everything.tokens} tokens, {at_once} at once, ms for each: {quantiles}.")
    print("\n".join(tables))
    out.mkdir(parents=True, exist_ok=True)
    plot(runs, out / "speed.svg")
    (out / "tables.md").write_text("\n".join(tables) + "\n")
    for cell in (*cells.values(), *tries.values()):
        del cell["texts"]
    results = {
        "runs": runs,
        "ablations": tries,
        "lookup_ms": lookup,
        "pool_tokens": everything.tokens,
        "texts": len(requests),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "relaxed": asdict(RELAXED),
        "of": of.value,
        "commit": this_commit(),
        "machine": this_machine().model_dump(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


@torch.inference_mode()
def plain_texts(model: KnowledgeModel, requests: Sequence[Request]) -> Iterator[list[int]]:
    """Greedy decoding by transformers itself, one text at a time."""
    for request in requests:
        prompt = torch.tensor(request.prompt[None], dtype=torch.int64, device=model.language_model.device)
        written = model.language_model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=model.tokenizer.eos_token_id,
            pad_token_id=model.tokenizer.eos_token_id,
        )
        yield written[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def lead(model: KnowledgeModel, request: Request, text: Sequence[int], other: Sequence[int]) -> float:
    """By how much the logit of the first token in which `text` differs from `other` is above that of the other's."""
    at = next(at for at, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    tokens = torch.tensor([[*request.prompt.tolist(), *text[:at]]], device=model.language_model.device)
    logits = model.language_model(tokens).logits[0, -1].double()
    return float(logits[text[at]] - logits[other[at]])


@app.command()
def equality(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    entities: Annotated[int, typer.Option(min=2)] = 500,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    threads: Annotated[int, typer.Option(help="Of PyTorch; 0 for one per core.")] = 0,
    tie: Annotated[float, typer.Option(help="Logits closer than this are one by chance: rounding decides.")] = 1e-3,
) -> None:
    """Write texts with drafts and greedy verification, and compare them token for token with transformers' own.

    Exit status 1 if one differs in anything but a tie.
    """
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities)
    plain = list(plain_texts(model, requests))
    console.print(f"{len(plain)} texts, {sum(map(len, plain))} tokens by plain greedy decoding")
    failed = False
    for size in map(int, batch_sizes.split(",")):
        run = measure(model, (PoolDrafter(model.pools), GREEDY), size, requests)
        pairs = zip(requests, plain, run["texts"], strict=True)
        leads = [abs(lead(model, request, one, two)) for request, one, two in pairs if one != two]
        console.print(
            f"batch {size}: {len(plain) - len(leads)} of {len(plain)} are the same, "
            f"{run['tokens_per_step']:.2f} tokens per step; logits of the tokens where others part: {leads}"
        )
        failed |= any(gap > tie for gap in leads)
    raise typer.Exit(failed)


def many_texts(tokenizer: Any, written: Sequence[KnowledgeText], count: int) -> list[np.ndarray]:
    """`count` texts, int32 [tokens] each: beginnings of some of `written` with ends of others of their department.

    They are joined between sentences, so that each is a likely text; their sentences are those of `written`.
    """
    ends = np.array([token.endswith(".") for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
    encoded = [np.array(ids, np.int32) for ids in tokenizer([text.text for text in written]).input_ids]
    stops = [ends[ids].nonzero()[0] + 1 for ids in encoded]
    groups: dict[str, list[int]] = {}
    for number, text in enumerate(written):
        groups.setdefault(text.group, []).append(number)
    texts = []
    for begin, end, cut in np.random.default_rng(0).random((count, 3)).tolist():
        one = int(begin * len(written))
        of_group = groups[written[one].group]
        other = of_group[int(end * len(of_group))]
        sentences = int(cut * stops[one].size)
        at = min(sentences, stops[other].size - 1)
        texts.append(np.concatenate([encoded[one][: stops[one][sentences]], encoded[other][stops[other][at] :]]))
    return texts


@app.command()
def pool(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`, for its tokenizer.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    texts: Annotated[int, typer.Option(min=1, help="In the pool; a million take about 6 GB to sort.")] = 1_000_000,
) -> None:
    """Build, save and load a pool of very many texts of users, and look up where held-out ones go on."""
    model = KnowledgeModel(folder)
    known, held_out = split_texts(user_texts(read_dataset(data)))
    written = many_texts(model.tokenizer, known, texts)
    seconds = {}
    began = time.perf_counter()
    built = RetrievalPool(len(model.tokenizer), max_tokens=(1 << 31) - 1)
    built.add(written)
    seconds["build"] = time.perf_counter() - began
    del written
    console.print(f"{texts} texts, {built.tokens} tokens, {built.nbytes / built.tokens:.2f} bytes for each")
    asked = [model.tokenizer(text.text).input_ids for text in held_out[:200]]
    for at_once in (1, 16):
        console.print(f"lookup, {at_once} at once, ms for each:", lookup_ms(built, asked, at_once))
    with TemporaryDirectory() as work:
        path = Path(work) / "pool.npz"
        began = time.perf_counter()
        built.save(path)
        seconds["save"] = time.perf_counter() - began
        del built
        began = time.perf_counter()
        RetrievalPool.load(path)
        seconds["load"] = time.perf_counter() - began
        console.print(f"{path.stat().st_size / 2**20:.0f} MiB on disk")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print({step: round(value, 1) for step, value in seconds.items()}, f"s; peak memory {most:.1f} GiB")


if __name__ == "__main__":
    app()
