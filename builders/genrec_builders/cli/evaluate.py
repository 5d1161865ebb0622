"""`genrec evaluate`, `genrec compare` and `genrec compare-report`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from genrec.cli.arguments import BundlePath, numbers, one_of, usage
from genrec.engines import ENGINES
from genrec_builders.cli.arguments import DataPath, Seed, print_quality

if TYPE_CHECKING:
    import numpy as np

    from genrec.bundle import Bundle

_COMPARED_ENGINES = ("onnx", "torch")  # those that draft as many beams as they are asked for
_SWITCHES = {"on": True, "off": False}
_READY_S = 10.0


def evaluate(
    bundle_path: BundlePath,
    data: DataPath,
    users: Annotated[Optional[int], typer.Option(min=1, help="Test users, drawn at random; all by default.")] = None,
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt_llm.", callback=one_of(ENGINES))] = "onnx",
    masked: Annotated[bool, typer.Option(help="Draft only prefixes that exist.")] = True,
    exclude_history: Annotated[bool, typer.Option(help="Leave the history's items out, as serving does.")] = False,
    server: Annotated[Optional[str], typer.Option(help="Also rank through this server (host:port, gRPC).")] = None,
    seed: Seed = 0,
) -> None:
    """Hit@K and NDCG@K on the test split that the bundle was built with, offline and through a server."""
    if server is not None:
        from genrec_client.channel import split_urls

        with usage("--server", server):
            split_urls(server)

    from genrec.bundle import Bundle
    from genrec.errors import DataError
    from genrec.evaluation.metrics import metrics
    from genrec.evaluation.ranker import Ranker, require_catalog
    from genrec.pipeline import Pipeline
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset, sample_users, split_interactions

    bundle = Bundle(bundle_path)
    if server is not None:
        _require_ready(server)
    dataset = read_dataset(data, track=track)
    require_catalog(bundle, dataset.items.item_ids)
    split = split_interactions(dataset.interactions, bundle.manifest.split_at)
    typer.echo(f"split {split.protocol}, as the bundle was built")
    histories, targets = sample_users(split.test, users, seed)
    if not histories:
        raise DataError(f"{data}: no user has the interactions that testing needs; add longer histories")
    with track("rank") as task:
        offline = Ranker(Pipeline.open(bundle, engine), masked=masked).rank(
            histories,
            exclude_history=exclude_history,
            progress=lambda done: task(done, len(histories), ""),
        )
    rows = {"offline": metrics(offline.rows, targets) | {"valid_drafts": offline.valid_share}}
    if server is not None:
        served = _rank_served(server, bundle, histories, exclude_history)
        rows["served"] = metrics(served, targets)
        typer.echo(f"same ranked list offline and served: {(served == offline.rows).all(1).mean():.2%} of users")
    print_quality({"users": len(histories), **rows})


def compare(
    data: DataPath,
    model: Annotated[
        list[str], typer.Option(help="NAME=BUNDLE[,BUNDLE...], a bundle per seed; the first is compared.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; what it holds already is not ranked again.")],
    beam_widths: Annotated[str, typer.Option(help="At least 20 each.")] = "20,50,128,512",
    masks: Annotated[str, typer.Option(help="Prefix masks: on, off or on,off.")] = "on,off",
    users: Annotated[Optional[int], typer.Option(min=1, help="Test users, drawn at random; all by default.")] = None,
    engine: Annotated[str, typer.Option(help="onnx or torch.", callback=one_of(_COMPARED_ENGINES))] = "onnx",
    batch_size: Annotated[int, typer.Option(min=1, help="Users drafted at a time.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 for one per core.")] = 0,
    device: Annotated[str, typer.Option(help="Of the torch engine: cpu or cuda.")] = "cpu",
    reference: Annotated[
        Optional[list[str]], typer.Option(help="NAME=HIT,NDCG: a published Hit@10 and NDCG@10 to print beside.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare models on the test split of their build: quality, valid drafts, time, and intervals of the differences.

    Every bundle ranks at every beam width, with prefix masks and without, history excluded and not.
    """
    from genrec.evaluation.comparison import ComparisonSettings, models_of
    from genrec.evaluation.comparison import compare as compare_models
    from genrec.evaluation.report import write_report
    from genrec.evaluation.results import COMPARISON, reference_of
    from genrec.reporting.outputs import require_output
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset, user_sample
    from genrec_builders.export.widths import opener

    if unknown := [word for word in masks.split(",") if word not in _SWITCHES]:
        raise typer.BadParameter(f"--masks {masks!r}: {unknown[0]!r} is neither on nor off")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise typer.BadParameter(f"--device {device!r}: use cpu, cuda, or cuda:1 and so on")
    with usage():
        settings = ComparisonSettings(
            beam_widths=numbers("--beam-widths", beam_widths, int, least=1, most=1_000_000),
            masks=tuple(_SWITCHES[word] for word in masks.split(",")),
            engine=engine,
            batch=batch_size,
            threads=threads,
            device=device,
        )
        references = [reference_of(text) for text in reference or []]
        bundles = models_of(model)
    require_output(out, COMPARISON, [data, *(path for paths in bundles.values() for path in paths)])
    _require_device(device)
    split_at = _common_split([path for paths in bundles.values() for path in paths])
    sample = user_sample(data.resolve().name, read_dataset(data, track=track), users, seed, split_at)
    results = compare_models(sample, bundles, out, settings, opener(settings, track), track, references)
    typer.echo(f"{len(results.record.cells)} rankings; report in {write_report(results, out)}")


def compare_report(
    out: Annotated[Path, typer.Argument(help="Folder of the merged results and their report.")],
    folders: Annotated[list[Path], typer.Argument(help="Folders that `genrec compare` wrote, of the same users.")],
    reference: Annotated[
        Optional[list[str]], typer.Option(help="NAME=HIT,NDCG: a published Hit@10 and NDCG@10 to print beside.")
    ] = None,
) -> None:
    """Merge results of several runs, such as seeds trained on different days, into one report. Needs no bundle."""
    from genrec.evaluation.report import write_report
    from genrec.evaluation.results import COMPARISON, merge, reference_of, require_nothing_lost
    from genrec.reporting.outputs import require_output

    with usage():
        references = [reference_of(text) for text in reference or []]
    require_output(out, COMPARISON, folders)
    results = merge(folders, references)
    require_nothing_lost(out, results)
    results.save(out)
    typer.echo(f"{len(results.record.cells)} rankings; report in {write_report(results, out)}")


def _common_split(bundles: Sequence[Path]) -> str | None:
    """The moment at which the data of all bundles was split. Raises ValueError if it is not one."""
    from genrec.bundle import Bundle

    found = {path: Bundle(path).manifest.split_at for path in bundles}
    first, *others = found
    for path in others:
        if found[path] != found[first]:
            one, other = (f"at {at}" if at else "leaving one out" for at in (found[first], found[path]))
            raise ValueError(f"{first} was built by a split {one}, {path} {other}; compare bundles of one split")
    return found[first]


def _require_device(device: str) -> None:
    """Raises ValueError for a GPU that PyTorch does not see here."""
    if device == "cpu":
        return
    import torch

    seen = torch.cuda.device_count()
    if int(device.partition(":")[2] or 0) >= seen:
        raise ValueError(f"--device {device}: PyTorch sees {seen} GPUs here, numbered from 0; use cpu or one of them")


def _require_ready(server: str) -> None:
    """Asks before the work, not after it. Raises ConnectionError for an address that would not recommend."""
    from genrec_client import Recommender

    with Recommender(server, timeout_s=_READY_S) as client:
        for address in client.readiness():
            if not address.ready:
                raise ConnectionError(f"--server {address.url}: {address.message}; is `genrec serve` running there?")


def _rank_served(server: str, bundle: Bundle, histories: Sequence[np.ndarray], exclude_history: bool) -> np.ndarray:
    from genrec.evaluation.ranker import rank_served
    from genrec_client import RecommendError

    try:
        return rank_served(server, bundle.catalog, histories, exclude_history=exclude_history)
    except RecommendError as error:
        raise ConnectionError(f"--server {server}: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"--server {server}: it recommends {error}, which {bundle.path} does not have; serve that bundle"
        ) from error
