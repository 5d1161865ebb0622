"""Compares models: ranks the test split with every bundle, at every beam width, with prefix masks and without."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from genrec.bundle import CATALOG, CHECKPOINT, INDEX, VOTES, Bundle, Manifest
from genrec.bundle.checkpoint_shapes import decoder_of
from genrec.engines import ENGINES
from genrec.engines.base import Engine
from genrec.evaluation.metrics import CUTOFFS, mean_metrics, target_ranks
from genrec.evaluation.ranker import Ranker, rank_popular, require_catalog
from genrec.evaluation.results import (
    COMPARISON,
    RECORD,
    DataSection,
    Floor,
    RankingCell,
    Record,
    Reference,
    Results,
    Run,
    Trained,
    ranks_name,
    require_same_bundle,
    require_same_data,
    this_run,
)
from genrec.pipeline import Pipeline
from genrec.reporting.kept import digest
from genrec.reporting.outputs import require_output
from genrec.reporting.progress import Track
from genrec.verifier import Verifier

DEPTH = 50
RANKING_FORMAT = "1"  # another one when the same bundle and users come to be ranked otherwise
LEAST_WIDTH = 2 * max(CUTOFFS)
HISTORIES = (False, True)  # excluded?
T = TypeVar("T")
log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")


@dataclass(frozen=True, eq=False)
class UserSample:
    """Users of a dataset's test split, drawn to be ranked.

    name: the dataset's. item_ids: of its catalogue, by row. user_ids: E ids. histories: E int32 arrays of catalogue
    rows, oldest first. targets: int32 [E], the item that each user took next. test_users: of how many they were drawn,
    with `seed`. protocol: how the test split was made, in words.
    """

    name: str
    item_ids: Sequence[str]
    user_ids: Sequence[str]
    histories: Sequence[np.ndarray]
    targets: np.ndarray
    test_users: int
    seed: int
    protocol: str = "leave-one-out"


# An engine over a bundle's files that drafts so many beams.
OpenEngine = Callable[[Bundle, int], Engine]


@dataclass(frozen=True)
class ComparisonSettings:
    """How it is ranked. threads: 0 for one per core. device: of the torch engine."""

    beam_widths: tuple[int, ...] = (20, 50, 128, 512)
    masks: tuple[bool, ...] = (True, False)
    engine: str = "onnx"
    batch: int = 16
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.beam_widths or min(self.beam_widths) < LEAST_WIDTH:
            raise ValueError(
                f"beam widths {self.beam_widths}: each must be {LEAST_WIDTH} or more, twice the {max(CUTOFFS)} items "
                f"that are ranked, because the verifier drops some"
            )
        if not self.masks:
            raise ValueError("masks: name on, off or both")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is unknown; use one of {ENGINES}")
        if self.device != "cpu" and self.engine != "torch":
            raise ValueError(f"device {self.device!r} needs the torch engine")


def models_of(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Bundles by the model's name, of texts "NAME=PATH[,PATH...]". Raises ValueError for anything else."""
    models: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, paths = text.partition("=")
        if not equals or not _NAME.fullmatch(name) or not all(paths.split(",")):
            raise ValueError(f"model {text!r}: write NAME=BUNDLE or NAME=BUNDLE,BUNDLE,... with one bundle per seed")
        models.setdefault(name, []).extend(map(Path, paths.split(",")))
    return models


def depth_of(beams: int) -> int:
    """Items ranked with so many beams: half as many, the most that serving allows a bundle's top_k; 10 to 50."""
    return min(DEPTH, max(max(CUTOFFS), beams // 2))


def compare(
    users: UserSample,
    models: Mapping[str, Sequence[Path]],
    out: Path,
    settings: ComparisonSettings,
    open_engine: OpenEngine,
    track: Track,
    references: Sequence[Reference] = (),
) -> Results:
    """Rank with every bundle and save what was measured in the folder `out`, after every pass.

    models: bundles by the model's name, one per seed. Cells that `out` holds already are not ranked again, so an
    interrupted comparison goes on, and a folder can grow. Raises ValueError for bundles or a folder that do not go
    with the users' data or with what was ranked before, and FileExistsError for a folder that holds anything else.
    """
    require_output(out, COMPARISON, [path for paths in models.values() for path in paths])
    bundles = {name: [_open(path, users.item_ids) for path in paths] for name, paths in models.items()}
    _require_same_availability([bundle for group in bundles.values() for bundle in group])
    available = next(iter(bundles.values()))[0].catalog.available
    results = opened(out, described(users, available), settings.engine)
    if not users.histories:
        raise ValueError(f"{users.name}: no user has the interactions that testing needs")
    run = this_run(settings.engine, settings.device, settings.batch, settings.threads)
    if not results.record.popularity:
        _rank_popular(results, next(iter(bundles.values()))[0], users)
    _extend(results.record.references, references, lambda reference: reference.name)
    for name, group in bundles.items():
        trainings = [_trained(name, bundle) for bundle in group]
        if len({trained.weights for trained in trainings}) < len(trainings):
            raise ValueError(f"model {name}: the same weights are given twice; name a bundle of each seed once")
        for trained in trainings:
            _require_noted(results, trained, out)
        _extend(results.record.models, trainings, lambda trained: (trained.model, trained.weights))
    for name, group in bundles.items():
        for bundle in group:
            trained = _trained(name, bundle)
            for width in dict.fromkeys(settings.beam_widths):
                _rank(results, run, trained, bundle, width, users, settings, open_engine, track)
                results.save(out)
    results.record = results.record.model_copy(update={"differences": results.compare()})
    results.save(out)
    return results


def _rank(
    results: Results,
    run: Run,
    trained: Trained,
    bundle: Bundle,
    width: int,
    users: UserSample,
    settings: ComparisonSettings,
    open_engine: OpenEngine,
    track: Track,
) -> None:
    """Rank with one bundle at one beam width what `results` lacks of it."""
    todo = [
        masked
        for masked in dict.fromkeys(settings.masks)
        if any(ranks_name(trained, width, masked, excluded) not in results.ranks for excluded in HISTORIES)
    ]
    if not todo:
        return
    label = trained.model if trained.seed is None else f"{trained.model} seed {trained.seed}"
    pipeline = Pipeline.open(bundle, open_engine(bundle, width))
    depth = depth_of(bundle.space.beams(width))
    for masked in todo:
        ranker = Ranker(pipeline, settings.batch, masked)
        with track(f"{label}, beam {width}, masks {'on' if masked else 'off'}") as task:
            ranker.warm_up(users.histories)
            ranked = ranker.rank_both(
                users.histories,
                exclusions=HISTORIES,
                top_k=depth,
                progress=lambda done: task(done, len(users.histories), ""),
            )
        if run not in results.record.runs:
            results.record.runs.append(run)
        for excluded, ranking in zip(HISTORIES, ranked, strict=True):
            name = ranks_name(trained, width, masked, excluded)
            if name in results.ranks:
                continue
            results.ranks[name] = ranks = target_ranks(ranking.rows, users.targets)
            results.record.cells.append(
                RankingCell(
                    model=trained.model,
                    weights=trained.weights,
                    beam_width=width,
                    masked=masked,
                    history_excluded=excluded,
                    depth=depth,
                    metrics=mean_metrics(ranks, [*CUTOFFS, *([DEPTH] if depth == DEPTH else [])]),
                    valid_drafts=ranking.valid_share,
                    ms_per_user=ranking.ms_per_user,
                    drafting_ms=ranking.drafting_ms,
                    run=results.record.runs.index(run),
                    ranks=name,
                )
            )


def _open(path: Path, item_ids: Sequence[str]) -> Bundle:
    bundle = Bundle(path)
    bundle.check()
    require_catalog(bundle, item_ids)
    return bundle


def _require_same_availability(bundles: Sequence[Bundle]) -> None:
    for bundle in bundles[1:]:
        if not np.array_equal(bundle.catalog.available, bundles[0].catalog.available):
            raise ValueError(f"{bundle.path}: its available items are not those of {bundles[0].path}")


def opened(out: Path, data: DataSection, engine: str) -> Results:
    """The results in the folder `out`, or empty ones. Raises ValueError if they are of other data or another engine."""
    if not (out / RECORD).exists():
        return Results(Record(data=data), {})
    results = Results.load(out)
    require_same_data(data, results.record.data, out, "what is asked for now; choose another folder")
    if other := {run.engine for run in results.record.runs} - {engine}:
        raise ValueError(f"{out}: was ranked with engine {other.pop()}; choose another folder for {engine}")
    return results


def _require_noted(results: Results, trained: Trained, out: Path) -> None:
    """Raises ValueError if what `results` has of these weights was ranked with another bundle."""
    key = trained.model, trained.weights
    kept = next((each for each in results.record.models if (each.model, each.weights) == key), None)
    if kept is not None and kept.contents is None:
        log.warning("%s: its rankings of %s are of before their bundle was noted; they are kept", out, trained.model)
    require_same_bundle(kept, trained, out, f"remove {out} to rank anew, or choose another folder")


def described(users: UserSample, available: np.ndarray) -> DataSection:
    """What is ranked. available: bool, of every item, whether it may be recommended."""
    return DataSection(
        name=users.name,
        items=len(users.item_ids),
        test_users=users.test_users,
        users=len(users.user_ids),
        sample_seed=users.seed,
        protocol=users.protocol,
        catalog=digest(item_id.encode() for item_id in users.item_ids),
        sampled=digest(
            part
            for user, history, target in zip(users.user_ids, users.histories, users.targets, strict=True)
            for part in (user.encode(), history.tobytes(), target.tobytes())
        ),
        available=digest([available.tobytes()]),
    )


def _trained(name: str, bundle: Bundle) -> Trained:
    manifest, training = bundle.manifest, bundle.manifest.training
    config = training.get("config", {})
    return Trained(
        model=name,
        weights=manifest.files[f"{CHECKPOINT}/model.safetensors"].sha256,
        bundle_version=manifest.bundle_version,
        created=manifest.created,
        decoder=decoder_of(json.loads((bundle.path / CHECKPOINT / "config.json").read_text())),
        seed=config.get("seed"),
        parameters=training.get("parameters"),
        beam_width=manifest.beam_width,
        levels=manifest.levels,
        semantic_ids=digest([np.ascontiguousarray(bundle.catalog.sids).tobytes()]),
        config=config,
        curves=training.get("curves"),
        contents=_contents(manifest),
    )


def _contents(manifest: Manifest) -> dict[str, str]:
    """What rankings depend on, besides beam width and masks: whatever a bundle has more, such as graphs, follows."""
    prompt = manifest.prompt.model_dump_json().encode()
    found = {"prompts": digest([prompt]), "code format": RANKING_FORMAT}
    if manifest.votes is not None:
        found["votes settings"] = manifest.votes.model_dump_json()
    for name in (CATALOG, INDEX, CHECKPOINT, *([VOTES] if manifest.votes else [])):
        files = sorted(file for file in manifest.files if file.startswith(name))
        found[name] = digest(part.encode() for file in files for part in (file, manifest.files[file].sha256))
    return found


def _rank_popular(results: Results, bundle: Bundle, users: UserSample) -> None:
    verifier = Verifier(bundle.catalog, bundle.index)
    for excluded in HISTORIES:
        rows = rank_popular(verifier, users.histories, top_k=DEPTH, exclude_history=excluded)
        values = mean_metrics(target_ranks(rows, users.targets), [*CUTOFFS, DEPTH])
        results.record.popularity.append(Floor(history_excluded=excluded, metrics=values))


def _extend(kept: list[T], new: Sequence[T], key: Callable[[T], Hashable]) -> None:
    """Add to `kept` what it has not by `key`."""
    known = {key(entry) for entry in kept}
    kept += [entry for entry in new if key(entry) not in known]
