"""Results of a comparison: what was measured of which model, kept so that folders of several days become one report.

A folder holds `results.json`, a `Record`, and `ranks.npz`: per cell a uint16 [E] array, the place of each user's target
in their list, from 1, 0 if it is not there. Every metric and every interval follows from the ranks.
"""

from __future__ import annotations

import datetime
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from genrec.evaluation.bootstrap import relative_difference
from genrec.evaluation.metrics import user_values
from genrec.reporting.kept import require_same
from genrec.reporting.machine import Machine, Section, this_commit, this_machine
from genrec.reporting.outputs import Output

FORMAT_VERSION = 1
RECORD, RANKS = "results.json", "ranks.npz"
# A folder of results with its report.
COMPARISON = Output.of_patterns(
    "a comparison",
    [RECORD],
    [
        RANKS,
        "report.md",
        *(f"{name}.svg" for name in ("differences-history-*", "quality-history-*", "time", "training")),
        *(f".{name}.*" for name in (RECORD, RANKS)),  # left by a process that was killed
    ],
)
COMPARED = ("hit@10", "ndcg@10")
POOLED = "pooled"


class DataSection(Section):
    """What was ranked. catalog, sampled: digests of the items, and of the users with histories and targets.

    available: a digest of which items the bundles have available; None in files of before it was noted. protocol: how
    the test split was made.
    """

    name: str
    items: int
    test_users: int
    users: int
    sample_seed: int
    catalog: str
    sampled: str
    available: str | None = None
    protocol: str = "leave-one-out"


class Run(Section):
    """One call of `genrec compare`. commit: of the working folder, "+" behind it for uncommitted changes."""

    created: str
    commit: str | None
    machine: Machine
    engine: str
    device: str
    batch: int
    threads: int


class Trained(Section):
    """One model trained with one seed: a bundle, or a rival that scores every item and has no beams.

    weights: their SHA-256. decoder: a bundle's, or the kind of rival. semantic_ids: a digest of the items'. A rival has
    no bundle_version, beam_width, levels and semantic_ids.

    contents: digests of all that its rankings depend on, by what it is in words; None in files of before it was noted.
    """

    model: str
    weights: str
    bundle_version: str | None
    created: str
    decoder: str
    seed: int | None
    parameters: int | None
    beam_width: int | None
    levels: tuple[int, ...] | None
    semantic_ids: str | None
    config: dict[str, Any]
    curves: dict[str, Any] | None
    contents: dict[str, str] | None = None


# Beam width, masks, history excluded: what two models must have in common to be compared. The first two are None for a
# model without beams, which is compared with every beam width of another one.
Setting = tuple[int | None, bool | None, bool]


class RankingCell(Section):
    """One ranking of all users by one model.

    depth: items ranked. drafting_ms: of ms_per_user. run: position in `Record.runs`. ranks: name in `ranks.npz`. A
    model without beams has no beam_width, masked, valid_drafts and drafting_ms.
    """

    model: str
    weights: str
    beam_width: int | None
    masked: bool | None
    history_excluded: bool
    depth: int
    metrics: dict[str, float]
    valid_drafts: float | None
    ms_per_user: float
    drafting_ms: float | None
    run: int
    ranks: str

    @property
    def setting(self) -> Setting:
        """What it was ranked in."""
        return self.beam_width, self.masked, self.history_excluded


class Floor(Section):
    """The ranking by popularity."""

    history_excluded: bool
    metrics: dict[str, float]


class Reference(Section):
    """A published figure to print beside one's own."""

    name: str
    metrics: dict[str, float]


def reference_of(text: str) -> Reference:
    """The published figure "NAME=HIT,NDCG", both at 10. Raises ValueError for anything else."""
    name, _, values = text.partition("=")
    try:
        hit, ndcg = map(float, values.split(","))
    except ValueError:
        hit = ndcg = -1.0
    if not name or not 0 <= hit <= 1 or not 0 <= ndcg <= 1:
        raise ValueError(f"reference {text!r}: write NAME=HIT,NDCG, published Hit@10 and NDCG@10 between 0 and 1")
    return Reference(name=name, metrics={"hit@10": hit, "ndcg@10": ndcg})


class Difference(Section):
    """Relative difference of a mean metric of `model` from `baseline`'s, over the same users.

    pair: "pooled", over per-user means of `seeds` seeds of each side, or the two seeds compared. beam_width, masked: of
    the side that has them. relative, low, high: the difference and its bootstrap interval, None where the baseline
    finds too little.
    """

    model: str
    baseline: str
    pair: str
    seeds: tuple[int, int]
    beam_width: int | None
    masked: bool | None
    history_excluded: bool
    metric: str
    ours: float
    theirs: float
    relative: float | None
    low: float | None
    high: float | None


class Record(Section):
    """`results.json`."""

    format_version: int = FORMAT_VERSION
    data: DataSection
    runs: list[Run] = Field(default_factory=list)
    models: list[Trained] = Field(default_factory=list)
    cells: list[RankingCell] = Field(default_factory=list)
    popularity: list[Floor] = Field(default_factory=list)
    references: list[Reference] = Field(default_factory=list)
    differences: list[Difference] = Field(default_factory=list)


@dataclass
class Results:
    """A record and the ranks that belong to it, by `RankingCell.ranks`: uint16 [E] each."""

    record: Record
    ranks: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """The models' names; the first is what the others are compared with."""
        return list(dict.fromkeys(trained.model for trained in self.record.models))

    def trained(self, name: str) -> list[Trained]:
        """A model's bundles by seed, whatever order they were ranked in."""
        found = [trained for trained in self.record.models if trained.model == name]
        return sorted(found, key=lambda t: (t.seed is None, t.seed or 0, t.bundle_version or "", t.weights))

    def cells(self, name: str, setting: Setting | None = None) -> list[RankingCell]:
        """A model's cells, of one setting or all, in the order of `trained`."""
        place = {trained.weights: place for place, trained in enumerate(self.trained(name))}
        found = [c for c in self.record.cells if c.model == name and setting in (None, c.setting)]
        return sorted(found, key=lambda cell: (cell.setting, place[cell.weights]))

    def settings(self) -> list[Setting]:
        """Every setting that some model was ranked in: by beam width, masks on first, history allowed first, and those
        of models without beams last."""
        found = {cell.setting for cell in self.record.cells}
        return sorted(found, key=lambda s: (s[0] is None, s[0] or 0, not s[1], s[2]))

    def compare(self, seed: int = 0) -> list[Difference]:
        """The first model against each other one in every setting both have: pooled, then seed by seed."""
        first, *others = self.names
        settings = self.settings()
        pairs = [
            (a, b) for a in settings for b in settings if a == b or (a[2] == b[2] and (a[0] is None) != (b[0] is None))
        ]
        return [
            difference
            for baseline in others
            for pair in pairs
            for difference in self._differences(first, baseline, *pair, seed)
        ]

    def _differences(self, name: str, baseline: str, mine: Setting, other: Setting, seed: int) -> list[Difference]:
        ours, theirs = self.cells(name, mine), self.cells(baseline, other)
        if not ours or not theirs:
            return []
        groups = [(POOLED, ours, theirs)]
        if max(len(ours), len(theirs)) > 1:
            groups += [(f"{self._label(a)} / {self._label(b)}", [a], [b]) for a, b in zip(ours, theirs, strict=False)]
        beam_width, masked, history_excluded = other if mine[0] is None else mine
        found = []
        for metric in COMPARED:
            for pair, a, b in groups:
                our_values, their_values = self.values(a, metric), self.values(b, metric)
                interval = relative_difference(our_values, their_values, seed=seed)
                found.append(
                    Difference(
                        model=name,
                        baseline=baseline,
                        pair=pair,
                        seeds=(len(a), len(b)),
                        beam_width=beam_width,
                        masked=masked,
                        history_excluded=history_excluded,
                        metric=metric,
                        ours=float(our_values.mean()),
                        theirs=float(their_values.mean()),
                        relative=interval.relative if interval else None,
                        low=interval.low if interval else None,
                        high=interval.high if interval else None,
                    )
                )
        return found

    def values(self, cells: Sequence[RankingCell], metric: str) -> np.ndarray:
        """float64 [E]: each user's metric, averaged over cells (the seeds of one model in one setting)."""
        return user_values(np.stack([self.ranks[cell.ranks] for cell in cells]), metric).mean(0)

    def _label(self, cell: RankingCell) -> str:
        trained = next(t for t in self.record.models if (t.model, t.weights) == (cell.model, cell.weights))
        return trained.weights[:8] if trained.seed is None else f"seed {trained.seed}"

    def save(self, folder: Path) -> None:
        """Write both files; one that is there is replaced in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{RANKS}.{os.getpid()}.npz"
        np.savez_compressed(partial, **self.ranks)  # type: ignore[arg-type]  # numpy's stub takes no ** here
        partial.replace(folder / RANKS)
        partial = folder / f".{RECORD}.{os.getpid()}"
        partial.write_text(self.record.model_dump_json(indent=1) + "\n")
        partial.replace(folder / RECORD)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read a folder. Raises ValueError that names the file at fault."""
        try:
            raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder / RECORD}: is missing; `genrec compare` writes it") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / RECORD}: is not readable as JSON: {error}") from error
        if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{folder / RECORD}: is not a comparison of format version {FORMAT_VERSION}")
        try:
            record = Record.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{folder / RECORD}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        try:
            with np.load(folder / RANKS, allow_pickle=False) as arrays:
                ranks = {cell.ranks: arrays[cell.ranks] for cell in record.cells}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{folder / RANKS}: {error}") from error
        for name, array in ranks.items():
            if array.dtype != np.uint16 or array.shape != (record.data.users,):
                raise ValueError(
                    f"{folder / RANKS}: {name} is {array.dtype} {list(array.shape)}; "
                    f"{record.data.users} users need uint16 [{record.data.users}]"
                )
        return cls(record, ranks)


def merge(folders: Sequence[Path], references: Sequence[Reference] = ()) -> Results:
    """One `Results` of all that `folders` hold, and more `references`; differences are computed anew.

    Models keep the order in which the folders name them first. Raises ValueError for folders with other items or users
    than the first one's, and for a cell that two of them hold with different ranks.
    """
    parts = [Results.load(folder) for folder in folders]
    base = parts[0].record
    runs: list[Run] = []
    models: dict[tuple[str, str], Trained] = {}
    cells: dict[str, RankingCell] = {}
    ranks: dict[str, np.ndarray] = {}
    for folder, part in zip(folders, parts, strict=True):
        require_same_data(base.data, part.record.data, folder, f"{folders[0]}")
        for trained in part.record.models:
            require_same_bundle(models.get((trained.model, trained.weights)), trained, folder, "leave the folder out")
        models |= {(t.model, t.weights): t for t in part.record.models if (t.model, t.weights) not in models}
        for cell in part.record.cells:
            if cell.ranks in cells and not np.array_equal(ranks[cell.ranks], part.ranks[cell.ranks]):
                raise ValueError(f"{folder}: {cell.ranks} is in another folder too, with other ranks; leave one out")
            if cell.ranks not in cells:
                cells[cell.ranks] = cell.model_copy(update={"run": len(runs) + cell.run})
                ranks[cell.ranks] = part.ranks[cell.ranks]
        runs += part.record.runs
    published = {r.name: r for r in [*(r for part in parts for r in part.record.references), *references]}
    record = base.model_copy(
        update={
            "runs": runs,
            "models": list(models.values()),
            "cells": list(cells.values()),
            "references": list(published.values()),
        }
    )
    merged = Results(record, ranks)
    merged.record = record.model_copy(update={"differences": merged.compare()})
    return merged


def require_same_data(expected: DataSection, found: DataSection, folder: Path, other: str) -> None:
    """Raises ValueError unless both hold the same items and the same users with the same histories and targets."""
    if found.catalog != expected.catalog:
        raise ValueError(f"{folder}: ranks another catalogue ({found.name}, {found.items} items) than {other}")
    if found.sampled != expected.sampled:
        raise ValueError(f"{folder}: ranks other users ({found.users} of {found.test_users}) than {other}")
    if None not in (found.available, expected.available) and found.available != expected.available:
        raise ValueError(f"{folder}: ranks other available items than {other}")


def require_same_bundle(kept: Trained | None, now: Trained, place: Path, remedy: str) -> None:
    """Raises ValueError if `kept` has the same weights in a bundle that ranks otherwise, as far as both note it."""
    if kept is not None and kept.contents is not None and now.contents is not None:
        require_same(place, kept.contents, now.contents, f"it is of model {now.model}: {remedy}")


def require_nothing_lost(out: Path, results: Results) -> None:
    """Raises ValueError if `out`, to which `results` are to be saved, holds rankings that they lack."""
    if (out / RECORD).exists() and (lost := Results.load(out).ranks.keys() - results.ranks.keys()):
        raise ValueError(
            f"{out}: holds {len(lost)} rankings that none of the folders has, such as {min(lost)}, and would lose "
            "them; name another folder to write to"
        )


def ranks_name(trained: Trained, beam_width: int | None, masked: bool | None, history_excluded: bool) -> str:
    """A cell's name in `ranks.npz`."""
    beams = [] if beam_width is None else [f"beam{beam_width}", "masks" if masked else "free"]
    history = "excluded" if history_excluded else "allowed"
    return ".".join([trained.model, trained.weights[:12], *beams, history])


def this_run(engine: str, device: str, batch: int, threads: int) -> Run:
    """A `Run` that starts now, here."""
    return Run(
        # To the microsecond: equal runs are one, and two calls can begin within a second.
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        commit=this_commit(),
        machine=this_machine(),
        engine=engine,
        device=device,
        batch=batch,
        threads=threads,
    )
