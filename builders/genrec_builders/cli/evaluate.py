"""`genrec evaluate`, `genrec compare` and `genrec compare-report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from genrec.cli.arguments import BundlePath
from genrec_builders.cli.arguments import DataPath, Seed, print_quality


def evaluate(
    bundle_path: BundlePath,
    data: DataPath,
    users: Annotated[Optional[int], typer.Option(help="Test users, drawn at random; all by default.")] = None,
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt_llm.")] = "onnx",
    masked: Annotated[bool, typer.Option(help="Draft only prefixes that exist.")] = True,
    exclude_history: Annotated[bool, typer.Option(help="Leave the history's items out, as serving does.")] = False,
    server: Annotated[Optional[str], typer.Option(help="Also rank through this server (host:port, gRPC).")] = None,
    seed: Seed = 0,
) -> None:
    """Hit@K and NDCG@K on the test split (last item of each user), offline and through a server."""
    from genrec.bundle import Bundle
    from genrec.evaluation.metrics import metrics
    from genrec.evaluation.ranker import Ranker, rank_served, require_catalog
    from genrec.pipeline import Pipeline
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset, sample_users, split_leave_one_out

    bundle = Bundle(bundle_path)
    dataset = read_dataset(data)
    require_catalog(bundle, dataset.items.item_ids)
    histories, targets = sample_users(split_leave_one_out(dataset.interactions).test, users, seed)
    with track("rank") as task:
        offline = Ranker(Pipeline.open(bundle, engine), masked=masked).rank(
            histories,
            exclude_history=exclude_history,
            progress=lambda done: task(done, len(histories), ""),
        )
    rows = {"offline": metrics(offline.rows, targets) | {"valid_drafts": offline.valid_share}}
    if server:
        served = rank_served(server, bundle.catalog, histories, exclude_history=exclude_history)
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
    engine: Annotated[str, typer.Option(help="onnx, torch or tensorrt_llm.")] = "onnx",
    batch_size: Annotated[int, typer.Option(min=1, help="Users drafted at a time.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 for one per core.")] = 0,
    device: Annotated[str, typer.Option(help="Of the torch engine: cpu or cuda.")] = "cpu",
    reference: Annotated[
        Optional[list[str]], typer.Option(help="NAME=HIT,NDCG: a published Hit@10 and NDCG@10 to print beside.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare models on the test split: quality, valid drafts, time, and intervals of the differences.

    Every bundle ranks at every beam width, with prefix masks and without, history excluded and not.
    """
    from genrec.evaluation.comparison import ComparisonSettings, models_of
    from genrec.evaluation.comparison import compare as compare_models
    from genrec.evaluation.report import write_report
    from genrec.evaluation.results import reference_of
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset, user_sample
    from genrec_builders.export.widths import opener

    switches = {"on": True, "off": False}
    if unknown := [word for word in masks.split(",") if word not in switches]:
        raise ValueError(f"masks {masks!r}: {unknown[0]!r} is neither on nor off")
    settings = ComparisonSettings(
        beam_widths=_numbers("beam widths", beam_widths),
        masks=tuple(switches[word] for word in masks.split(",")),
        engine=engine,
        batch=batch_size,
        threads=threads,
        device=device,
    )
    references = [reference_of(text) for text in reference or []]
    bundles = models_of(model)
    sample = user_sample(data.resolve().name, read_dataset(data), users, seed)
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
    from genrec.evaluation.results import merge, reference_of

    results = merge(folders, [reference_of(text) for text in reference or []])
    results.save(out)
    typer.echo(f"{len(results.record.cells)} rankings; report in {write_report(results, out)}")


def _numbers(what: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{what} {text!r}: write whole numbers with commas between them") from None
