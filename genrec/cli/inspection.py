"""How `genrec catalog inspect` prints what it found."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import typer
from rich.console import Console
from rich.table import Table

from genrec.live.drift import ERROR_LIMIT, PSI_LIMIT
from genrec.live.inspection import Drift, Inspection, Sizes, Unknown
from genrec.live.rule_reach import RuleReach


def print_inspection(found: Inspection) -> None:
    """Tables of everything, refused commits, and a warning for each sign that it is time to train again."""
    console = Console()
    console.print(_facts(found))
    console.print(_sizes(found))
    if found.rule is not None:
        console.print(_rule(found.rule))
    if not isinstance(found.drift.added, Unknown):
        console.print(_drift(found.drift))
    for version, why in found.refused:
        typer.echo(f"refused: version {version} counts as empty: {why}")
    for figure in dict.fromkeys(_unknown(found.drift)):
        typer.echo(f"not known: {figure}")
    for warning in found.drift.warnings():
        typer.echo(f"warning: {warning}")


def _facts(found: Inspection) -> Table:
    table = Table(show_header=False)
    refused = f", {len(found.refused)} of them refused" if found.refused else ""
    for name, value in (
        ("version", f"{found.version}, {_when(found.committed_at)}"),
        ("newest base", f"version {found.base}, {_when(found.base_committed_at)}"),
        ("commits behind it", f"{found.commits}{refused}"),
        ("live items", f"{found.live:,}"),
        ("known, not available", f"{found.unavailable:,}"),
        (
            "can be recommended",
            f"{100 * found.reachable_share:.2f} % of the live items; {found.unreachable:,} lie behind the first "
            f"{found.top_k} of their semantic ID",
        ),
        ("share their semantic ID", f"{100 * found.shared_share:.2f} % of the live items"),
    ):
        table.add_row(name, value)
    return table


def _sizes(found: Inspection) -> Table:
    table = Table("live items per", *("in use", "of", "p50", "p99", "largest"))
    for column in table.columns[1:]:
        column.justify = "right"
    *prefixes, buckets = found.prefixes

    def add(name: str, sizes: Sizes) -> None:
        table.add_row(name, *(f"{number:,}" for number in sizes.summary().values()))

    for depth, sizes in enumerate(prefixes, 1):
        add(f"prefix of {depth} code{'s' if depth > 1 else ''}", sizes)
    add("semantic ID", buckets)
    return table


def _rule(rule: RuleReach) -> Table:
    how = "drafts these items alone" if rule.narrowed else "drafts from all items, and drafts are checked"
    table = Table(show_header=False)
    for name, value in (
        ("items that the rule leaves", f"{rule.items:,}, {100 * rule.share:.3g} % of the live items"),
        ("their semantic IDs", f"{rule.semantic_ids:,}"),
        ("can be recommended", f"{rule.reachable:,}"),
        (f"a beam of {rule.beam_width}", how),
        ("its drafts that lead to them", f"about {rule.drafts:,}"),
    ):
        table.add_row(name, value)
    return table


def _drift(drift: Drift) -> Table:
    table = Table("drift", "value", "limit", "meaning")
    table.add_row("items added", _number(drift.added, ","), "", "new, or with another SID")
    levels = drift.stability
    meanings = ("0: codes are used as before", "the same, given level 0")
    for level, meaning in enumerate(meanings if isinstance(levels, Unknown) else meanings[: len(levels)]):
        value = levels if isinstance(levels, Unknown) else levels[level]
        table.add_row(f"stability index, level {level}", _number(value, ".3f"), f"{PSI_LIMIT:g}", meaning)
    table.add_row("error, trained", _number(drift.trained_error, ".3f"), "", "of embeddings by their SIDs,")
    table.add_row("error, added", _number(drift.error, ".3f"), "", "over the trained ones' variance")
    table.add_row("error ratio", _number(drift.error_ratio, ".2f"), f"{ERROR_LIMIT:g}", "1: SIDs fit as before")
    return table


def _unknown(drift: Drift) -> list[str]:
    named = {"stability index": drift.stability, "error ratio": drift.error_ratio}
    return [f"{name}: {figure.why}" for name, figure in named.items() if isinstance(figure, Unknown)]


def _number(figure: float | Unknown, form: str) -> str:
    return "not known" if isinstance(figure, Unknown) else format(figure, form)


def _when(moment: float) -> str:
    """A time in UTC, and how long ago it is."""
    if not moment:
        return "its time is not known"
    ago = max(0.0, time.time() - moment)
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if ago >= 2 * seconds:
            return (
                f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC, {ago / seconds:.0f} {unit} ago"
            )
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC, {ago:.0f} seconds ago"
