"""`genrec knowledge generate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genrec.cli.arguments import one_of, usage

if TYPE_CHECKING:
    from genrec.knowledge.offline import GenerationReport

console = Console()


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
        str,
        typer.Option(
            help="relaxed, or greedy: the texts of plain greedy decoding.", callback=one_of(("relaxed", "greedy"))
        ),
    ] = "relaxed",
    precision: Annotated[
        str,
        typer.Option(
            help="On a CPU: float32, or bfloat16 where the processor has AMX or avx512_bf16: faster, other roundings.",
            callback=one_of(("float32", "bfloat16")),
        ),
    ] = "float32",
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
    if not (numbers := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)):
        raise typer.BadParameter(f"--shard {shard!r}: write i/n, such as 0/4 for the first of four")

    from genrec.knowledge.offline import GenerationOptions
    from genrec.knowledge.offline import generate as generate_texts
    from genrec.reporting.progress import track

    with usage():
        options = GenerationOptions(
            verification=verification,
            precision=precision,
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


def _print_report(report: GenerationReport) -> None:
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
