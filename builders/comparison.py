"""Compares models: ranks the test split with every bundle, at every beam width, with prefix masks and without."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from builders.build import Track
from builders.dataset import Dataset, Holdout, read_dataset, split_leave_one_out
from builders.evaluate import (
    CUTOFFS,
    mean_metrics,
    rank_popular,
    rankings,
    require_catalog,
    sample,
    sample_users,
    target_ranks,
)
from builders.export import export_onnx
from builders.results import (
    RECORD,
    Cell,
    DataSection,
    Floor,
    Record,
    Reference,
    Results,
    Run,
    Trained,
    ranks_name,
    require_same_data,
    this_run,
)
from genrec.bundle import CHECKPOINT, ONNX_GRAPH, Bundle
from genrec.checkpoint_shapes import decoder_of
from genrec.engines import ENGINES
from genrec.engines.base import Engine
from genrec.engines.onnx import OnnxEngine
from genrec.engines.torch import TorchEngine
from genrec.model.checkpoint import load_checkpoint
from genrec.verifier import Verifier

DEPTH = 50
LEAST_WIDTH = 2 * max(CUTOFFS)
HISTORIES = (False, True)  # excluded?
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")


@dataclass(frozen=True)
class Plan:
    """What is ranked, and how.

    users: test users drawn with `seed`, all if None. threads: 0 for one per core. device: of the torch engine.
    """

    beam_widths: tuple[int, ...] = (20, 50, 128, 512)
    masks: tuple[bool, ...] = (True, False)
    users: int | None = None
    seed: int = 0
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


def depth_of(beams: int) -> int:
    """Items ranked with so many beams: half as many, the most that serving allows a bundle's top_k; 10 to 50."""
    return min(DEPTH, max(max(CUTOFFS), beams // 2))


def compare(
    data: Path,
    models: Mapping[str, Sequence[Path]],
    out: Path,
    plan: Plan,
    track: Track,
    references: Sequence[Reference] = (),
) -> Results:
    """Rank with every bundle and save what was measured in the folder `out`, after every pass.

    models: bundles by the model's name, one per seed. Cells that `out` holds already are not ranked again, so an
    interrupted comparison goes on, and a folder can grow. Raises ValueError for bundles or a folder that do not go
    with the data.
    """
    dataset = read_dataset(data)
    test = split_leave_one_out(dataset.interactions).test
    bundles = {name: [_open(path, dataset) for path in paths] for name, paths in models.items()}
    _require_same_availability([bundle for group in bundles.values() for bundle in group])
    results = _opened(out, _described(data, dataset, test, plan), plan.engine)
    histories, targets = sample_users(test, plan.users, plan.seed)
    if not histories:
        raise ValueError(f"{data}: no user has the 3 interactions that testing needs")
    run = this_run(plan.engine, plan.device, plan.batch, plan.threads)
    if plan.threads:
        torch.set_num_threads(plan.threads)
    if not results.record.popularity:
        _rank_popular(results, next(iter(bundles.values()))[0], histories, targets)
    _extend(results.record.references, references, lambda reference: reference.name)
    for name, group in bundles.items():
        described = [_trained(name, bundle) for bundle in group]
        if len({trained.weights for trained in described}) < len(described):
            raise ValueError(f"model {name}: the same weights are given twice; name a bundle of each seed once")
        _extend(results.record.models, described, lambda trained: (trained.model, trained.weights))
    for name, group in bundles.items():
        for bundle in group:
            _rank(results, run, _trained(name, bundle), bundle, histories, targets, plan, track, out)
    results.record = results.record.model_copy(update={"differences": results.compare()})
    results.save(out)
    return results


def _rank(
    results: Results,
    run: Run,
    trained: Trained,
    bundle: Bundle,
    histories: list[np.ndarray],
    targets: np.ndarray,
    plan: Plan,
    track: Track,
    out: Path,
) -> None:
    verifier = Verifier(bundle.catalog, bundle.index)
    label = trained.model if trained.seed is None else f"{trained.model} seed {trained.seed}"
    for width in dict.fromkeys(plan.beam_widths):
        todo = [
            masked
            for masked in dict.fromkeys(plan.masks)
            if any(ranks_name(trained, width, masked, excluded) not in results.ranks for excluded in HISTORIES)
        ]
        if not todo:
            continue
        engine = _engine(bundle, width, plan, label, track)
        depth = depth_of(bundle.space.beams(width))
        for masked in todo:
            with track(f"{label}, beam {width}, masks {'on' if masked else 'off'}") as task:
                longest = sorted(histories, key=len)[-plan.batch :]
                engine.draft(  # the first call sets up memory: not timed
                    [bundle.layout.encode(bundle.catalog.sids[h[-bundle.layout.max_history :]]) for h in longest],
                    masked=masked,
                )
                ranked = rankings(
                    engine,
                    verifier,
                    bundle.catalog,
                    bundle.layout,
                    histories,
                    exclusions=HISTORIES,
                    top_k=depth,
                    masked=masked,
                    batch=plan.batch,
                    progress=lambda done: task(done, len(histories), ""),
                )
            if run not in results.record.runs:
                results.record.runs.append(run)
            for excluded, ranking in zip(HISTORIES, ranked, strict=True):
                name = ranks_name(trained, width, masked, excluded)
                ranks = target_ranks(ranking.rows, targets)
                cell = Cell(
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
                if name not in results.ranks:
                    results.record.cells.append(cell)
                    results.ranks[name] = ranks
            results.save(out)


def _engine(bundle: Bundle, width: int, plan: Plan, label: str, track: Track) -> Engine:
    """An engine of `width`; the ONNX graph's width is fixed, so another one is exported and forgotten."""
    prefixes, beams = bundle.index.prefixes, bundle.space.beams(width)
    if plan.engine == "torch":
        return TorchEngine(bundle.path / CHECKPOINT, prefixes, beams, plan.device)
    if width == bundle.manifest.beam_width:
        return OnnxEngine(bundle.path / ONNX_GRAPH, prefixes, beams, threads=plan.threads)
    with tempfile.TemporaryDirectory() as folder, track(f"{label}, export for beam {width}"):
        graph = Path(folder) / Path(ONNX_GRAPH).name
        export_onnx(load_checkpoint(bundle.path / CHECKPOINT), graph, width)
        return OnnxEngine(graph, prefixes, beams, threads=plan.threads)


def _open(path: Path, dataset: Dataset) -> Bundle:
    bundle = Bundle(path)
    bundle.check()
    require_catalog(bundle, dataset)
    return bundle


def _require_same_availability(bundles: Sequence[Bundle]) -> None:
    for bundle in bundles[1:]:
        if not np.array_equal(bundle.catalog.available, bundles[0].catalog.available):
            raise ValueError(f"{bundle.path}: its available items are not those of {bundles[0].path}")


def _opened(out: Path, data: DataSection, engine: str) -> Results:
    if not (out / RECORD).exists():
        return Results(Record(data=data), {})
    results = Results.load(out)
    require_same_data(data, results.record.data, out, "what is asked for now; choose another folder")
    if other := {run.engine for run in results.record.runs} - {engine}:
        raise ValueError(f"{out}: was ranked with engine {other.pop()}; choose another folder for {engine}")
    return results


def _described(data: Path, dataset: Dataset, test: Holdout, plan: Plan) -> DataSection:
    chosen = sample(test, plan.users, plan.seed)
    histories, targets = sample_users(test, plan.users, plan.seed)
    user_ids = dataset.interactions.user_ids
    return DataSection(
        name=data.resolve().name,
        items=len(dataset.items),
        test_users=len(test),
        users=chosen.size,
        sample_seed=plan.seed,
        catalog=_digest(item_id.encode() for item_id in dataset.items.item_ids),
        sampled=_digest(
            part
            for user, history, target in zip(test.histories.users[chosen], histories, targets, strict=True)
            for part in (user_ids[user].encode(), history.tobytes(), target.tobytes())
        ),
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
        semantic_ids=_digest([np.ascontiguousarray(bundle.catalog.sids).tobytes()]),
        config=config,
        curves=training.get("curves"),
    )


def _rank_popular(results: Results, bundle: Bundle, histories: list[np.ndarray], targets: np.ndarray) -> None:
    verifier = Verifier(bundle.catalog, bundle.index)
    for excluded in HISTORIES:
        rows = rank_popular(verifier, histories, top_k=DEPTH, exclude_history=excluded)
        values = mean_metrics(target_ranks(rows, targets), [*CUTOFFS, DEPTH])
        results.record.popularity.append(Floor(history_excluded=excluded, metrics=values))


def _extend(kept: list[T], new: Sequence[T], key: Callable[[T], Hashable]) -> None:
    """Add to `kept` what it has not by `key`."""
    known = {key(entry) for entry in kept}
    kept += [entry for entry in new if key(entry) not in known]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
