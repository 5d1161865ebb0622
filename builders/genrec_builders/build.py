"""Builds a bundle from a dataset: semantic IDs, training, export, evaluation."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from torch import Tensor

from genrec.bundle import (
    BUNDLE,
    CATALOG,
    CHECKPOINT,
    GOLDEN,
    INDEX,
    MANIFEST,
    MASKS,
    ONNX_GRAPH,
    ONNX_INT8,
    QUANTIZER,
    TOKENIZER,
    Bundle,
    Manifest,
    new_bundle,
    seal_bundle,
)
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS
from genrec.catalog import Catalog, ItemIndex, PrefixTable, SemanticIdSpace
from genrec.engines.onnx import OnnxEngine
from genrec.engines.torch import TorchEngine
from genrec.evaluation.metrics import metrics
from genrec.evaluation.ranker import Ranker, rank_popular
from genrec.golden import write_golden
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.checkpoint import load_checkpoint
from genrec.model.nezha import NezhaModel
from genrec.pipeline import Pipeline
from genrec.prompt import PromptLayout, QueryTokenizer
from genrec.reporting.kept import Fingerprint, require_same
from genrec.reporting.outputs import require_replaceable, require_space
from genrec.reporting.progress import Task, Track
from genrec.votes import Voting
from genrec_builders.config import BEHAVIOUR, BuildConfig
from genrec_builders.data import Dataset, Split, popularity, sample_queries, sample_users, split_interactions
from genrec_builders.data.report import semantic_ids_in_words
from genrec_builders.export.int8 import quantize_backbone
from genrec_builders.export.onnx import export_onnx
from genrec_builders.fingerprint import build_fingerprint
from genrec_builders.preflight import (
    STATE,
    new_work,
    remove_work,
    require_data,
    require_disk,
    require_limits,
    require_places,
    work_of,
)
from genrec_builders.sid_sources import make_semantic_ids, sid_source, used_dataset
from genrec_builders.training.checkpoint import open_backbone, print_line
from genrec_builders.training.checkpoint_facts import read_facts
from genrec_builders.training.checkpoint_findings import require_usable
from genrec_builders.training.examples import PackedWindows, QueryPrompts, Source, make_windows
from genrec_builders.training.loop import Curves, require_same_state, train
from genrec_builders.training.objective import AutoregressiveObjective, NezhaObjective, Objective
from genrec_builders.training.query import encode_queries, query_corpus, train_query_tokenizer

ATTRIBUTES = "attributes.parquet"
GOLDEN_QUERY = b"something new"
VALIDATION_BEAM = 20


def build_bundle(
    dataset: Dataset, out: Path, config: BuildConfig, track: Track, tensorboard: Path | None = None
) -> Manifest | None:
    """Build the bundle `out` from `dataset`; what is trained so far survives an interruption in `<out>.work`.

    A bundle that is there is replaced when the new one is whole. Before the first step it raises ValueError or OSError
    for an `out` that holds anything else, for a state in `<out>.work` of other data or settings, and for what it lacks:
    data, beams, positions, disk.

    Of every user the last item is held out for testing and the one before for validation, or with config.split_at the
    next items from that moment on. The metrics of the test items (all users, or config.evaluate_users of them) and how
    they were held out go into the manifest. Under `torchrun` all processes train, the main one writes the bundle, and
    the others get None. tensorboard: where the curves of the training go.
    """
    if config.max_query and dataset.interactions.queries is None:
        raise ValueError("max_query is set, but the interactions have no column `query` to train with")
    dataset = used_dataset(dataset, config)
    require_places(out, [config.checkpoint, config.adapter, config.sids_of])
    with track("split"):
        fingerprint = build_fingerprint(dataset, config)
        require_same_state(work_of(out) / STATE, fingerprint, work_of(out))
        split = split_interactions(dataset.interactions, config.split_at)
    print_line(require_data(dataset, split, config))
    if sid_source(dataset.items, config) == BEHAVIOUR and config.sid_source is None:
        print_line(f"semantic IDs: {semantic_ids_in_words(dataset.items)}")
    if config.training.freeze_backbone:
        _require_codes(config)
    if config.checkpoint is not None and not (config.checkpoint / MANIFEST).exists():  # else it is a bundle
        facts = read_facts(config.checkpoint, config.adapter)
        require_usable(facts.folder, facts.findings)  # the semantic IDs of many items take minutes
    if not config.training.epochs:
        print_line("not trained: with 0 epochs the weights stay as they are, random where no checkpoint has them")
    torch.manual_seed(config.training.seed)
    space = SemanticIdSpace(dataset.items.levels or config.levels)
    require_limits(config.beam_width, config.limits, space)
    made = make_semantic_ids(dataset.items, split.train, config, track)
    print_line(str(made))
    catalog = Catalog.build(
        dataset.items.item_ids, made.sids, popularity(split, len(dataset.items)), columns=dataset.items.typed
    )
    work = new_work(out)
    model, layout, heads = _model(dataset, split, space, config, work)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    require_disk(out, parameters, config)
    tokenizer = QueryTokenizer(work / TOKENIZER, layout) if config.max_query else None
    with track("train") as task:
        curves = _train(
            model, layout, heads, catalog, split, tokenizer, config, work / STATE, fingerprint, task, tensorboard
        )
    if not PartialState().is_main_process:
        return None
    with new_bundle(out) as folder:
        if tokenizer is not None:
            shutil.copy(work / TOKENIZER, folder / TOKENIZER)
        model.save_checkpoint(folder / CHECKPOINT)
        with track("export ONNX"):
            export_graphs(model, folder, config.beam_width, layout)
        if made.quantizer is not None:
            made.quantizer.save(folder / QUANTIZER)
        if dataset.items.attributes:
            columns = {"item_id": dataset.items.item_ids, **dataset.items.attributes}
            pq.write_table(pa.table(columns), folder / ATTRIBUTES)
        longest = int(np.argmax(np.diff(split.test.histories.offsets)))
        golden_history = split.test.histories[longest][-config.max_history :]
        pipeline = write_catalog(folder, space, layout, catalog, config.beam_width, golden_history, tokenizer)
        with track("evaluate") as task:
            quality = evaluate_split(pipeline, split, config.evaluate_users, task)
        manifest = seal_bundle(
            folder,
            bundle_version=_version(config),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            levels=space.levels,
            prompt={k: v for k, v in asdict(layout).items() if k != "space"},
            beam_width=config.beam_width,
            limits=config.limits,
            catalog={
                "version": 1,
                "items": len(catalog),
                "available": int(catalog.available.sum()),
                "attributes": catalog.kinds,
            },
            training={
                "config": asdict(config.training),
                "decoder": config.decoder,
                "parameters": parameters,
                "curves": asdict(curves) | {"best_epoch": curves.best_epoch},
                "semantic_ids": made.record,
                "split": split_record(split, config.split_at),
                "quality": quality,
                "fingerprint": fingerprint,
            },
        )
    remove_work(out)
    return manifest


def is_built(dataset: Dataset, out: Path, config: BuildConfig, say: Callable[[str], None] = print_line) -> bool:
    """Whether `out` is the bundle that a build of `dataset` makes; False if nothing is there.

    Raises ValueError if it is of other data or settings. One of before this was noted is taken; say: is told so.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (kept := Bundle(out).manifest.training.get("fingerprint")) is None:
        say(f"{out}: an older genrec built it and did not note of what; it is used as it is")
    else:
        remedy = f"remove {out} to build anew, or name another folder"
        require_same(out, kept, build_fingerprint(used_dataset(dataset, config), config), remedy)
    return True


def export_bundle(source: Path, out: Path, beam_width: int | None = None) -> Manifest:
    """Copy the bundle `source` to `out` with its checkpoint exported again for `beam_width`, the source's if None.

    The copy has the newest format, whatever the source's is.
    Raises, before any work, ValueError or OSError for an `out` that is or holds anything but another bundle.
    """
    require_replaceable(out, BUNDLE, [source])
    bundle = Bundle(source)
    bundle.check()
    beam_width = beam_width or bundle.manifest.beam_width
    require_limits(beam_width, bundle.manifest.limits, bundle.space)
    require_space(out, sum(file.bytes for file in bundle.manifest.files.values()), "the copy")
    with new_bundle(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / INDEX)  # written anew; an older format has other files there
        export_graphs(load_checkpoint(folder / CHECKPOINT), folder, beam_width, bundle.layout)
        history = bundle.catalog.rows_of(bundle.golden["history"].astype(object))
        tokenizer, voting = bundle.query_tokenizer, bundle.voting()
        write_catalog(folder, bundle.space, bundle.layout, bundle.catalog, beam_width, history, tokenizer, voting)
        fields = bundle.manifest.model_dump(exclude={"format_version", "files"})
        version = f"{bundle.manifest.bundle_version}-beam{beam_width}"
        return seal_bundle(folder, **(fields | {"beam_width": beam_width, "bundle_version": version}))


def export_graphs(model: BackboneModel, folder: Path, beam_width: int, layout: PromptLayout) -> None:
    """Write the graphs of ONNX Runtime and OpenVINO into a bundle's `folder`, in float32 and with int8 products."""
    export_onnx(model, folder / ONNX_GRAPH, beam_width, layout.max_tokens)
    quantize_backbone(folder / ONNX_GRAPH, folder / ONNX_INT8)


def write_catalog(
    folder: Path,
    space: SemanticIdSpace,
    layout: PromptLayout,
    catalog: Catalog,
    beam_width: int,
    golden_history: np.ndarray,
    tokenizer: QueryTokenizer | None = None,
    voting: Voting | None = None,
) -> Pipeline:
    """Write catalogue, index, masks and golden request into a bundle's `folder`; returns the pipeline that serves it.

    golden_history: int32 [N], catalogue rows, oldest first. tokenizer: of a bundle with text queries. voting: of one
    with votes.
    """
    index = ItemIndex.build(space, catalog)
    catalog.save(folder / CATALOG)
    index.save(folder / INDEX)
    masks = PrefixTable.of(space, catalog)
    masks.save(folder / MASKS)
    engine = OnnxEngine(folder / ONNX_GRAPH, masks, space.beams(beam_width))
    pipeline = Pipeline(catalog, index, layout, engine, tokenizer, voting=voting)
    write_golden(folder / GOLDEN, golden_history, pipeline, GOLDEN_QUERY)
    return pipeline


def evaluate_split(
    pipeline: Pipeline,
    split: Split,
    users: int | None,
    task: Task = lambda done, total, note: None,
) -> dict[str, Any]:
    """Test metrics, history excluded and not, beside the popularity ranking's.

    With text queries also those of the users whose target a query led to: with that query, without, and with it alone.
    """
    ranker, tokenizer = Ranker(pipeline), pipeline.tokenizer
    histories, targets = sample_users(split.test, users)
    quality: dict[str, Any] = {"users": len(histories)}

    def rank(names: Sequence[str], chosen: Sequence[int], **options: Any) -> None:
        picked = options.pop("histories", [histories[user] for user in chosen])
        found = ranker.rank_both(
            picked,
            exclusions=(False, True)[: len(names)],
            progress=lambda done: task(done, len(picked), names[0].replace("_", " ")),
            **options,
        )
        for name, ranking in zip(names, found, strict=True):
            quality[name] = metrics(ranking.rows, targets[chosen]) | {"valid_drafts": ranking.valid_share}
            quality[name]["ms_per_user"] = ranking.ms_per_user

    rank(["history_allowed", "history_excluded"], range(len(histories)))
    if tokenizer is not None:
        texts = sample_queries(split.test, users)
        asked = [user for user, text in enumerate(texts) if text]
        queries = tokenizer.encode_batch([texts[user].encode() for user in asked])
        quality["queried_users"] = len(asked)
        if asked:
            rank(["queried_without_query"], asked)
            rank(["queried_with_query"], asked, queries=queries)
            rank(["queried_by_query_alone"], asked, queries=queries, histories=[histories[user][:0] for user in asked])
    quality["popularity"] = metrics(rank_popular(pipeline.verifier, histories), targets)
    return quality


def split_record(split: Split, split_at: str | None) -> dict[str, Any]:
    """How a split was made, and how much it holds, for a manifest."""
    return {
        "protocol": split.protocol,
        "at": split_at,
        "training_interactions": len(split.train.rows),
        "validation_users": len(split.validation),
        "test_users": len(split.test),
    }


def _train(
    model: BackboneModel,
    layout: PromptLayout,
    heads: Sequence[Tensor] | None,
    catalog: Catalog,
    split: Split,
    tokenizer: QueryTokenizer | None,
    config: BuildConfig,
    state: Path,
    fingerprint: Fingerprint,
    task: Task,
    tensorboard: Path | None,
) -> Curves:
    histories = split.train
    windows = PackedWindows(make_windows(histories.offsets, histories.rows, config.max_history), catalog.sids, layout)
    sources: list[Source] = [windows]
    if tokenizer is not None and histories.queries is not None:
        queries = encode_queries(tokenizer, histories.queries)
        sources.append(
            QueryPrompts(histories.offsets, histories.rows, queries, catalog.sids, layout, windows.tokens_per_epoch)
        )
    objective: Objective
    if isinstance(model, NezhaModel):
        # What it predicts, no trained weight can change in a frozen backbone.
        auxiliary_weight = 0.0 if config.training.freeze_backbone else config.training.auxiliary_weight
        objective = NezhaObjective(model, layout, auxiliary_weight, heads)
    else:
        assert isinstance(model, AutoregressiveModel)
        objective = AutoregressiveObjective(model, layout)
    return train(
        objective,
        sources,
        config.training,
        _validation(model, layout, catalog, split, config.validation_users) if config.validation_users else None,
        state,
        lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}"),
        made_of=fingerprint,
        tensorboard=tensorboard,
    )


def _validation(
    model: BackboneModel, layout: PromptLayout, catalog: Catalog, split: Split, users: int
) -> Callable[[], float]:
    """NDCG@10 of the validation items of `users` users, history not excluded, by a narrow beam."""
    index = ItemIndex.build(layout.space, catalog)
    masks, beams = PrefixTable.of(layout.space, catalog), layout.space.beams(VALIDATION_BEAM)
    histories, targets = sample_users(split.validation, users)

    def validate() -> float:
        engine = TorchEngine(model, masks, beams, str(model.input_embeddings().device))
        ranking = Ranker(Pipeline(catalog, index, layout, engine), batch=64).rank(histories)
        return metrics(ranking.rows, targets)["ndcg@10"]

    return validate


def _model(
    dataset: Dataset, split: Split, space: SemanticIdSpace, config: BuildConfig, work: Path
) -> tuple[BackboneModel, PromptLayout, Sequence[Tensor] | None]:
    """The model to train, its prompts, and the output heads of a checkpoint that are not its embeddings.

    Puts a text bundle's tokenizer into the folder `work`.
    """
    if config.decoder not in DECODERS:
        raise ValueError(f"decoder {config.decoder!r} is unknown; use one of {DECODERS}")
    backbone = heads = None
    if config.checkpoint is not None:
        opened = open_backbone(
            config.checkpoint,
            space,
            config.max_history,
            config.sid_tokens,
            config.max_query,
            adapter=config.adapter,
            item_markers=config.item_markers,
        )
        backbone, layout, heads = opened.backbone, opened.layout, opened.heads
        if opened.tokenizer is not None:
            shutil.copy(opened.tokenizer, work / TOKENIZER)
        backbone_settings = backbone.config
    else:
        text_tokens = 0
        if config.max_query:
            text_tokens = train_query_tokenizer(query_corpus(dataset.items, split.train.queries), work / TOKENIZER)
        layout = PromptLayout.contiguous(space, config.max_history, config.max_query, text_tokens)
        backbone_settings = config.shape.config(layout)
    if config.decoder == BEAM_SEARCH:
        layout = replace(layout, placeholders=())
        return AutoregressiveModel(backbone_settings, layout.sid_tokens, backbone, heads), layout, None
    return NezhaModel(backbone_settings, space.levels, **asdict(config.head), backbone=backbone), layout, heads


def _require_codes(config: BuildConfig) -> None:
    """Raises ValueError for a backbone that cannot stay as it is: one that knows no codes, or has no head to teach."""
    if config.checkpoint is None:
        raise ValueError("a frozen backbone must be a trained one: give a checkpoint")
    if config.decoder == BEAM_SEARCH:
        raise ValueError(f"with a frozen backbone a draft head alone is trained, and {BEAM_SEARCH} has none")
    if not (config.checkpoint / MANIFEST).exists() and not all(config.sid_tokens or [""]):
        raise ValueError(
            f"{config.checkpoint}: a frozen backbone must know the codes of every level: give a pattern of SID tokens "
            "for each, or train the backbone, too"
        )


def _version(config: BuildConfig) -> str:
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-seed{config.training.seed}"


def read_attributes(bundle_path: Path) -> dict[str, dict[str, str]]:
    """Display attributes of a bundle's items by item id; empty if it has none."""
    path = bundle_path / ATTRIBUTES
    if not path.exists():
        return {}
    return {row.pop("item_id"): row for row in pq.read_table(path).to_pylist()}
