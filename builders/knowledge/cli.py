"""`genrec knowledge`: makes the folder of a knowledge model, and writes texts with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from builders.knowledge.generate import Report

# Heavy imports stay inside the commands, as in builders/cli.py.

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()


def _training(text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Training, without a checkpoint", **limits)


@app.command()
def build(
    data: Annotated[Path, typer.Argument(help="A dataset folder: inter.json + index.json, or interactions and items.")],
    out: Annotated[Path, typer.Argument(help="Where the knowledge folder goes; replaced if it is there.")],
    checkpoint: Annotated[
        Optional[Path],
        typer.Option(help="A causal language model of the Qwen3 or Llama family, a Hugging Face folder."),
    ] = None,
    own_texts: Annotated[
        int, typer.Option(min=0, help="Texts that the model writes for its pools to begin with.")
    ] = 1000,
    harder: Annotated[bool, _training("On texts with twice the novelty.")] = False,
    texts: Annotated[Optional[int], _training("Texts to train on; the recipe's number by default.", min=1)] = None,
    epochs: Annotated[Optional[int], _training("Likewise.", min=1)] = None,
    seed: Annotated[int, _training("")] = 0,
) -> None:
    """Make a knowledge folder: language model, catalogue, groups of users and items, retrieval pools.

    Without a checkpoint a small model is trained on made-up texts, for data of `genrec demo-shop` only.
    """
    from dataclasses import replace

    from builders.dataset import read_dataset
    from builders.knowledge.folder import build_folder
    from builders.knowledge.language_model import LanguageModelConfig
    from builders.progress import track

    default = LanguageModelConfig()
    training = replace(default.training, epochs=epochs or default.training.epochs, seed=seed)
    config = replace(default, texts=texts or default.texts, training=training)
    with track("knowledge folder") as task:
        build_folder(
            read_dataset(data),
            out,
            checkpoint=checkpoint,
            config=config,
            harder=harder,
            own_texts=own_texts,
            progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}" if loss else "texts for the pools"),
        )
    typer.echo(f"knowledge folder in {out}")


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="A knowledge folder, as `genrec knowledge build` writes it.")],
    entities: Annotated[
        Path,
        typer.Option(
            help="Parquet or CSV. Users: user_id and history, or interactions: user_id, item_id, timestamp. "
            "Items: item_id and attributes."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Parquet of id, text, tokens, group, error; OUT.json becomes a report on it.")
    ],
    verification: Annotated[
        str, typer.Option(help="relaxed, or greedy: the texts of plain greedy decoding.")
    ] = "relaxed",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 8,
    shard: Annotated[str, typer.Option(help="i/n: only entities whose position is i modulo n, 0 <= i < n.")] = "0/1",
    max_new_tokens: Annotated[
        Optional[int], typer.Option(min=1, help="Most tokens of a text; the folder's limit by default.")
    ] = None,
    grow: Annotated[bool, typer.Option(help="Draft from texts of this run too.")] = True,
    attempts: Annotated[int, typer.Option(min=1, help="Times a text is tried alone after its batch has failed.")] = 2,
    compare: Annotated[
        int, typer.Option(min=0, help="First write so many of the texts without drafts, to tell the speed-up.")
    ] = 0,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds after which finished texts are saved.")] = 10.0,
) -> None:
    """Write the texts of a file of users or items. Goes on where it was interrupted; tries those with errors again.

    Exit status 1 if entities are left without a text.

    The shards of an indexed Kubernetes Job (completionMode: Indexed, completions: 8) are args of its container:
    --shard $(JOB_COMPLETION_INDEX)/8 --out /texts/$(JOB_COMPLETION_INDEX).parquet
    """
    from builders.knowledge.generate import Options
    from builders.knowledge.generate import generate as generate_texts
    from builders.progress import track

    if not (numbers := re.fullmatch(r"(\d+)/(\d+)", shard)):
        raise ValueError(f"shard is {shard!r}; write i/n, such as 0/4 for the first of four")
    options = Options(
        verification=verification,
        batch_size=batch_size,
        shard=(int(numbers[1]), int(numbers[2])),
        max_new_tokens=max_new_tokens,
        grow=grow,
        attempts=attempts,
        compare=compare,
        save_every_s=save_every,
    )
    report = generate_texts(folder, entities, out, options, track)
    _print_report(report)
    typer.echo(f"{report.texts} texts of {report.entities} entities in {out}")
    raise typer.Exit(1 if report.failures else 0)


@app.command()
def grow(
    folder: Annotated[Path, typer.Argument(help="A knowledge folder.")],
    texts: Annotated[list[Path], typer.Argument(help="What `generate` wrote with it: all shards.")],
) -> None:
    """Add written texts to the folder's pools, to draft later ones from them. Files that were added are left out.

    To be done when all shards are: an interrupted `generate` does not go on with a folder that has changed.
    """
    from builders.knowledge.folder import grow_pools

    typer.echo(f"{grow_pools(folder, texts)} texts added to the pools of {folder}")


def _print_report(report: Report) -> None:
    total = max(sum(report.seconds.values()), 1e-9)
    table = Table(show_header=False)
    table.add_row("texts", f"{report.texts}, {report.texts_per_s:.1f}/s")
    table.add_row("tokens", f"{report.tokens}, {report.tokens_per_s:.0f}/s, {report.tokens_per_step:.2f} per step")
    table.add_row("time", ", ".join(f"{part} {spent / total:.1%}" for part, spent in report.seconds.items()))
    depths = "  ".join(f"{depth}: {share:.2f}" for depth, share in report.acceptance_by_depth.items())
    table.add_row("steps that accept to depth", depths)
    if report.speed_up:
        plain = f"{report.autoregressive_tokens_per_s:.0f} tokens/s without drafts"
        table.add_row("speed-up", f"{report.speed_up:.2f} over {plain}, batch size {report.batch_size}")
    console.print(table)
    if report.failures:
        failures = Table("failed", "error", "entities")
        for failure in report.failures:
            ids = ", ".join(failure.ids) + (", ..." if failure.count > len(failure.ids) else "")
            failures.add_row(f"{failure.count}", escape(failure.error), escape(ids))
        console.print(failures)


@app.command()
def demo(
    data: Annotated[Path, typer.Argument(help="The demo shop.")],
    bundle: Annotated[Path, typer.Argument(help="Its bundle: the server also recommends.")],
    folder: Annotated[Path, typer.Argument(help="The knowledge folder; made if it is not there.")],
) -> None:
    """Stream the texts of 200 users from a real server, show five, and compare with decoding one token at a time."""
    from builders.knowledge.demo import run_knowledge_demo

    run_knowledge_demo(data, bundle, folder, console)
