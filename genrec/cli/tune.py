"""`genrec tune`: which deployment serves a bundle best on this machine. Also what `serve` and `plan` show of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from genrec.bundle import Bundle
from genrec.cli.arguments import BundlePath, one_of
from genrec.engines import PRECISIONS
from genrec.reporting.machine import usable_cores

if TYPE_CHECKING:
    from genrec.tuning.choices import Choice, Measured, Wanted
    from genrec.tuning.kept import Tuned

AIMS = ("latency", "throughput")
SECONDS = 2.0
Cores = Annotated[
    int, typer.Option(min=0, help="Processors that the engines share; 0 for all that this process may use.")
]
Aimed = Annotated[
    str,
    typer.Option(
        "--aim",
        help="What comes first: latency, of a request that is alone, or throughput, with 32 under way. What is within "
        "5 % counts as the same; there the other one decides.",
        callback=one_of(AIMS),
    ),
]


def tune(
    bundle_path: BundlePath,
    aim: Aimed = "latency",
    precision: Annotated[
        str,
        typer.Option(
            help="f32, bf16 or int8 alone; auto weighs all that the processor is made for.",
            callback=one_of(PRECISIONS),
        ),
    ] = "auto",
    cores: Cores = 0,
    histories: Annotated[
        Optional[Path],
        typer.Option(help="JSON: a list of histories, each a list of item ids, of users as yours; drawn if not given."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Of each of the runs, two for a deployment and round.")
    ] = SECONDS,
    rounds: Annotated[int, typer.Option(min=1, help="Over all deployments.")] = 2,
) -> None:
    """Serve a bundle in every likely way, ask each server, and keep the figures for `genrec serve --engine auto`.

    Takes one to three minutes on two processors. Nothing else should work on the machine meanwhile.
    """
    from genrec.tuning.choices import Aim, Wanted, chosen

    wanted = Wanted(precision)
    asked = None if histories is None else _read(histories, bundle_path)
    tuned = _measure(bundle_path, cores or usable_cores(), wanted, asked, seconds, rounds)
    best = chosen(tuned.of(wanted), Aim(aim))
    Console(soft_wrap=True).print(measurements(tuned))
    typer.echo(f"of all, this one serves best here: genrec serve {shlex.quote(str(bundle_path))} {best.choice.options}")
    typer.echo(f"kept in {tuned.save()}")


def best_deployment(bundle_path: Path, cores: int, wanted: Wanted, aim: str) -> Choice:
    """What `genrec serve --engine auto` serves a bundle with: by what is kept, or measured now if nothing is.

    cores: 0 for all that this process may use. Raises ValueError for a file of measurements that cannot be used, and if
    no deployment could be measured.
    """
    from genrec.tuning.choices import Aim, candidates, chosen
    from genrec.tuning.kept import Tuned
    from genrec.tuning.measurement import precisions

    cores = cores or usable_cores()
    tuned = Tuned.load(bundle_path, cores)
    wants = candidates(cores, precisions(bundle_path, wanted.precision), wanted)
    if tuned is None or not {*wants} <= {one.choice for one in tuned.measured}:
        typer.echo("engine auto: nothing is known of this bundle on this machine; measuring what serves it best")
        tuned = _measure(bundle_path, cores, wanted, None, SECONDS, 1)
        try:
            tuned.save()
        except OSError as error:  # it serves all the same
            typer.echo(f"warning: this cannot be kept, and the next start measures again: {error}", err=True)
    best = chosen(tuned.of(wanted), Aim(aim))
    typer.echo(f"engine auto: {best.choice.options} ({figures(best)}; measured {tuned.created})")
    return best.choice


def _measure(
    bundle_path: Path,
    cores: int,
    wanted: Wanted,
    histories: list[list[bytes]] | None,
    seconds: float,
    rounds: int,
) -> Tuned:
    """Measure all that is wanted. What is kept of other deployments stays beside it."""
    from genrec.tuning.choices import candidates
    from genrec.tuning.kept import Tuned
    from genrec.tuning.measurement import drawn, measure, precisions

    bundle = Bundle(bundle_path)
    bundle.check()
    choices = candidates(cores, precisions(bundle_path, wanted.precision), wanted)
    if not choices:
        raise ValueError(f"no engine here computes in precision {wanted.precision}; use another one, or auto")
    progress = Progress(console=Console(stderr=True, soft_wrap=True), transient=True)
    with progress:
        task = progress.add_task("measuring", total=len(choices) * rounds)

        def told(one: Measured) -> None:
            progress.console.print(escape(f"{one.choice.options}: {one.refused or figures(one)}"), highlight=False)
            progress.advance(task)

        found = measure(bundle_path, choices, histories or drawn(bundle), seconds, rounds, told)
    return Tuned.now(bundle_path, cores, found)


def figures(one: Measured) -> str:
    """What a deployment takes, in words."""
    return f"p50 {one.p50_ms:.1f} ms alone, {one.requests_per_s:.0f} requests/s with 32 under way"


def measurements(tuned: Tuned, title: str | None = None) -> Table:
    """All that is known of a bundle here. Of threads the instances times the threads of each."""
    found = Table("engine", "threads", "alone: p50 / p95 / p99 ms", "requests/s", "ten best kept", title=title)
    for one in tuned.measured:
        choice = one.choice
        shared = f"{choice.instances} x {choice.threads}"
        spent = " / ".join("-" if at is None else f"{at:.1f}" for at in (one.p50_ms, one.p95_ms, one.p99_ms))
        rate = "-" if one.requests_per_s is None else f"{one.requests_per_s:.0f}"
        same = "-" if one.same is None else f"{one.same:.1%}"
        found.add_row(f"{choice.engine}, {choice.precision}", shared, spent, rate, escape(one.refused) or same)
    return found


def _read(path: Path, bundle_path: Path) -> list[list[bytes]]:
    """Histories of a file. Raises ValueError for anything but lists of item ids, none of them longer than it may be."""
    most = Bundle(bundle_path).manifest.limits.history
    wanted = f"write a JSON list of histories, each a list of up to {most} item ids"
    try:
        lists = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); {wanted}") from error
    if not isinstance(lists, list) or not lists:
        raise ValueError(f"{path}: holds no list of histories; {wanted}")
    for at, history in enumerate(lists):
        if not isinstance(history, list) or not all(isinstance(item, str) for item in history) or len(history) > most:
            raise ValueError(f"{path}: history {at} is {json.dumps(history)[:60]}; {wanted}")
    return [[item.encode() for item in history] for history in lists]
