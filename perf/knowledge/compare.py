"""How much faster speculative decoding writes knowledge texts, whether they stay the same, and what large pools cost.

python -m perf.knowledge.compare compare build/knowledge build/shop build/knowledge-bench   # against its baselines
python -m perf.knowledge.compare equality build/knowledge build/shop                        # with plain greedy decoding
python -m perf.knowledge.compare foreign build/knowledge build/shop                         # with useless pools
python -m perf.knowledge.compare alone build/knowledge-long build/shop                      # DARE's authors' protocol
python -m perf.knowledge.compare pool build/knowledge build/shop                            # of a million texts

Texts are those of held-out users and items of the demo shop: none of them is in the folder's pools.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

from genrec.knowledge.drafter import PoolDrafter
from genrec.knowledge.model import RELAXED, KnowledgeModel
from genrec.knowledge.pool import RetrievalPool
from genrec.knowledge.pools import GLOBAL, Pools
from genrec.knowledge.texts import GREEDY, TextRequest
from genrec.reporting.machine import provenance
from genrec_builders.data import read_dataset
from genrec_builders.knowledge.texts import split_texts, user_texts
from perf.knowledge.calibration import calibration, calibration_table, plot_calibration
from perf.knowledge.comparison import compare_runs, comparison_tables, plot
from perf.knowledge.pool import AT_ONCE, lookup_lines, lookup_ms, many_texts
from perf.knowledge.runs import (
    BASELINE,
    DARE,
    OURS,
    RESD,
    SUFFIX,
    Of,
    Way,
    best_runs,
    foreign,
    held_out_requests,
    measure,
    run_ablations,
    run_ways,
    ways,
)

app = typer.Typer(help=__doc__)
console = Console()
Folder = Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")]
Data = Annotated[Path, typer.Argument(help="The demo shop that it was built on.")]
Threads = Annotated[int, typer.Option(help="PyTorch's threads; 0 for one per core.")]


@app.command()
def compare(
    folder: Folder,
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder of the results.")],
    entities: Annotated[int, typer.Option(min=2, help="Users and items whose texts are written, together.")] = 128,
    batch_sizes: Annotated[str, typer.Option(help="Texts at once, commas between.")] = "1,8,32,64",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures everything once, in turn.")] = 3,
    threads: Threads = 0,
    of: Annotated[Of, typer.Option(help="Whose texts are written.")] = Of.both,
    ablate: Annotated[bool, typer.Option(help="Ablations too, at the best batch size.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the draw of users and items.")] = 0,
) -> None:
    """Measure every way of drafting at every batch size, in turn; then ablations, and how well chances are predicted.

    Prints tables and writes tables.md, results.json, speed.svg and calibration.svg. Harder texts are those of a folder
    built so.
    """
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities, of, seed)
    sizes = [int(size) for size in batch_sizes.split(",")]
    runs = run_ways(model, ways(model), requests, sizes, rounds)
    best, changed = best_runs(runs), {}
    if ablate:
        changed = run_ablations(model, requests, best[OURS].batch_size, best[BASELINE].batch_size, rounds)
    everything = model.pools.by_group[GLOBAL]
    lookups = {at_once: lookup_ms(everything, runs[BASELINE][0].texts, at_once) for at_once in AT_ONCE}

    comparison = compare_runs(runs, changed)
    predicted = {size: calibration(model, requests, size) for size in (sizes[0], sizes[-1])}
    lines = [*comparison_tables(comparison), *calibration_table(predicted), *lookup_lines(everything, lookups)]
    tables = "\n".join(lines)
    print(tables)

    results = {
        **comparison.as_json(),
        "lookup_ms": lookups,
        "calibration": predicted,
        "pool_tokens": everything.tokens,
        "texts": len(requests),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "relaxed": asdict(RELAXED),
        "of": of.value,
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    plot(comparison, out / "speed.svg")
    plot_calibration(predicted, out / "calibration.svg")
    (out / "tables.md").write_text(tables + "\n")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


@app.command("foreign")
def useless_pools(
    folder: Folder,
    data: Data,
    entities: Annotated[int, typer.Option(min=2, help="Users and items whose texts are written, together.")] = 128,
    batch_sizes: Annotated[str, typer.Option(help="Texts at once, commas between.")] = "1,8,64",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures everything once, in turn.")] = 3,
    threads: Threads = 0,
) -> None:
    """Compare decoding with drafts from empty pools, of random tokens and of shuffled texts with decoding without."""
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities)
    sizes = [int(size) for size in batch_sizes.split(",")]
    print("\n".join(comparison_tables(compare_runs(run_ways(model, foreign(model), requests, sizes, rounds), {}))))


@app.command()
def alone(
    folder: Annotated[Path, typer.Argument(help="A folder of `python -m perf.knowledge.long_texts`.")],
    data: Data,
    entities: Annotated[int, typer.Option(min=2, help="Users whose texts are written.")] = 24,
    pool_texts: Annotated[str, typer.Option(help="Texts in the pools, commas between.")] = "300,1000",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures everything once, in turn.")] = 3,
    threads: Threads = 0,
) -> None:
    """The protocol of DARE's authors: one long text at a time, pools of different sizes."""
    if threads:
        torch.set_num_threads(threads)
    model = KnowledgeModel(folder)
    requests = held_out_requests(model, data, entities, Of.users)
    everything, by_group = model.pools.by_group[GLOBAL].texts(), dict(model.pools.by_group)
    for count in map(int, pool_texts.split(",")):
        chosen = everything[:count]
        known = {text.tobytes() for text in chosen}
        pools = Pools(model.pools.vocabulary_size)
        pools.add(chosen, [GLOBAL] * len(chosen))
        for group, pool in by_group.items():
            if group != GLOBAL and (own := [text for text in pool.texts() if text.tobytes() in known]):
                pools.by_group[group] = RetrievalPool(pools.vocabulary_size)
                pools.by_group[group].add(own)
        model.pools = pools
        names = [BASELINE, RESD, SUFFIX.format(2), DARE, OURS]
        compared = {name: way for name, way in ways(model).items() if name in names}
        found = compare_runs(run_ways(model, compared, requests, [1], rounds), {})
        print(f"Pools of {len(chosen)} texts:\n", "\n".join(comparison_tables(found)), sep="\n")


@torch.inference_mode()
def plain_texts(model: KnowledgeModel, requests: Sequence[TextRequest]) -> Iterator[list[int]]:
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
def lead(model: KnowledgeModel, request: TextRequest, text: Sequence[int], other: Sequence[int]) -> float:
    """By how much the logit of the first token in which `text` differs from `other` is above that of the other's."""
    at = next(at for at, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    tokens = torch.tensor([[*request.prompt.tolist(), *text[:at]]], device=model.language_model.device)
    logits = model.language_model(tokens).logits[0, -1].double()
    return float(logits[text[at]] - logits[other[at]])


@app.command()
def equality(
    folder: Folder,
    data: Data,
    entities: Annotated[int, typer.Option(min=2, help="Users and items whose texts are written, together.")] = 500,
    batch_sizes: Annotated[str, typer.Option(help="Texts at once, commas between.")] = "1,8",
    threads: Threads = 0,
    tie: Annotated[float, typer.Option(help="Logits closer than this are a tie: rounding decides.")] = 1e-3,
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
        run = measure(model, Way(PoolDrafter(model.pools), GREEDY, fixed=False), size, requests)
        pairs = zip(requests, plain, run.texts, strict=True)
        leads = [abs(lead(model, request, one, two)) for request, one, two in pairs if one != two]
        console.print(
            f"batch {size}: {len(plain) - len(leads)} of {len(plain)} are the same, "
            f"{run.tokens_per_step:.2f} tokens per step; logits of the tokens where others part: {leads}"
        )
        failed |= any(gap > tie for gap in leads)
    raise typer.Exit(failed)


@app.command()
def pool(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`, for its tokenizer.")],
    data: Data,
    texts: Annotated[
        int, typer.Option(min=1, help="Texts in the pool; a million take about 6 GB to sort.")
    ] = 1_000_000,
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
    for at_once in AT_ONCE:
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
