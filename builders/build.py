"""Builds a bundle from a dataset: semantic IDs, training, export, evaluation."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from builders.checkpoint import with_sid_tokens
from builders.dataset import Dataset, Split, popularity, split_leave_one_out
from builders.evaluate import metrics, popularity_ranking, rank_offline, sample_users
from builders.export import export_onnx
from builders.tokenize import collision_report, fit_residual_kmeans
from builders.train import TrainingConfig, make_windows, train
from genrec.bundle import (
    CATALOG,
    CHECKPOINT,
    GOLDEN,
    INDEX,
    ONNX_GRAPH,
    QUANTIZER,
    Bundle,
    Limits,
    Manifest,
    new_bundle,
    seal_bundle,
)
from genrec.catalog import Catalog
from genrec.engines.onnx import OnnxEngine
from genrec.golden import write_golden
from genrec.item_index import ItemIndex
from genrec.model.nezha import NezhaModel, backbone_config
from genrec.prefix_trie import PrefixTrie
from genrec.prompt import PromptLayout
from genrec.quantizer import ResidualQuantizer
from genrec.semantic_id import SemanticIdSpace
from genrec.verifier import Verifier

ATTRIBUTES = "attributes.parquet"

Task = Callable[[int, int, str], None]  # (done, total, note)
Track = Callable[[str], AbstractContextManager[Task]]  # a titled progress bar


@dataclass(frozen=True)
class BackboneShape:
    """A backbone trained from scratch; see transformers' configuration of the family for the fields."""

    family: str = "qwen3"
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides what a build makes.

    levels: codes per level, for catalogues without semantic IDs. checkpoint: a Hugging Face folder of the Qwen3 or
    Llama family to start from, instead of `shape` from scratch. sid_tokens: with it, its tokenizer's SID tokens per
    level, "{}" standing for the code, e.g. ("<a_{}>", "<b_{}>"); tokens that it lacks are added.
    """

    levels: tuple[int, ...] = (128, 128, 128)
    max_history: int = 20
    beam_width: int = 128
    limits: Limits = field(default_factory=Limits)
    shape: BackboneShape = field(default_factory=BackboneShape)
    checkpoint: Path | None = None
    sid_tokens: tuple[str, ...] | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluate_users: int | None = None


def build_bundle(dataset: Dataset, out: Path, config: BuildConfig, track: Track) -> Manifest:
    """Build the bundle `out` from `dataset`; what is trained so far survives an interruption in `<out>.work`.

    Of every user the last item is held out for testing and the one before for validation. The metrics of the test
    items (all users, or config.evaluate_users of them) go into the manifest.
    """
    work = out.with_name(out.name + ".work")
    torch.manual_seed(config.training.seed)
    sids, levels, quantizer = _semantic_ids(dataset, config, track)
    space = SemanticIdSpace(levels)
    split = split_leave_one_out(dataset.interactions)
    catalog = Catalog.build(dataset.items.item_ids, sids, popularity(split, len(dataset.items)))
    model, layout = _model(space, config)
    windows = make_windows(split.train.offsets, split.train.rows, config.max_history)
    with track("train") as task:
        losses = train(
            model,
            layout,
            sids,
            windows,
            config.training,
            work / "training.pt",
            lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}"),
        )
    with new_bundle(out) as folder:
        model.save_checkpoint(folder / CHECKPOINT)
        with track("export ONNX"):
            export_onnx(model, folder / ONNX_GRAPH, config.beam_width)
        if quantizer is not None:
            quantizer.save(folder / QUANTIZER)
        if dataset.items.attributes:
            columns = {"item_id": dataset.items.item_ids, **dataset.items.attributes}
            pq.write_table(pa.table(columns), folder / ATTRIBUTES)
        longest = int(np.argmax(np.diff(split.test.histories.offsets)))
        golden_history = split.test.histories[longest][-config.max_history :]
        engine, verifier = write_catalog(folder, space, layout, catalog, config.beam_width, golden_history)
        with track("evaluate") as task:
            quality = evaluate_split(engine, verifier, catalog, layout, split, config.evaluate_users, task)
        manifest = seal_bundle(
            folder,
            bundle_version=_version(config),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            levels=space.levels,
            prompt={k: v for k, v in asdict(layout).items() if k != "space"},
            beam_width=config.beam_width,
            limits=config.limits,
            catalog={"version": 1, "items": len(catalog), "available": int(catalog.available.sum())},
            training={
                "config": asdict(config.training),
                "parameters": sum(p.numel() for p in model.parameters()),
                "epoch_losses": losses,
                "semantic_ids": asdict(collision_report(sids)),
                "quality": quality,
            },
        )
    shutil.rmtree(work, ignore_errors=True)
    return manifest


def export_bundle(source: Path, out: Path, beam_width: int) -> Manifest:
    """Copy the bundle `source` to `out` with its checkpoint exported again for `beam_width`."""
    bundle = Bundle(source)
    bundle.check()
    with new_bundle(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        export_onnx(NezhaModel.load_checkpoint(folder / CHECKPOINT), folder / ONNX_GRAPH, beam_width)
        history = bundle.catalog.rows_of(bundle.golden["history"].astype(object))
        write_catalog(folder, bundle.space, bundle.layout, bundle.catalog, beam_width, history)
        fields = bundle.manifest.model_dump(exclude={"format_version", "files"})
        version = f"{bundle.manifest.bundle_version}-beam{beam_width}"
        return seal_bundle(folder, **(fields | {"beam_width": beam_width, "bundle_version": version}))


def write_catalog(
    folder: Path,
    space: SemanticIdSpace,
    layout: PromptLayout,
    catalog: Catalog,
    beam_width: int,
    golden_history: np.ndarray,
) -> tuple[OnnxEngine, Verifier]:
    """Write catalogue, index and golden request into a bundle's `folder`; returns the parts that serve from it.

    golden_history: int32 [N], catalogue rows, oldest first.
    """
    index = ItemIndex.build(space, catalog)
    catalog.save(folder / CATALOG)
    index.save(folder / INDEX)
    width = space.beams(beam_width)
    engine = OnnxEngine(folder / ONNX_GRAPH, index.prefixes, PrefixTrie.unrestricted(space), width)
    verifier = Verifier(catalog, index)
    write_golden(folder / GOLDEN, golden_history, catalog, layout, engine, verifier)
    return engine, verifier


def evaluate_split(
    engine: OnnxEngine,
    verifier: Verifier,
    catalog: Catalog,
    layout: PromptLayout,
    split: Split,
    users: int | None,
    task: Task = lambda done, total, note: None,
) -> dict[str, Any]:
    """Test metrics, history excluded and not, beside the popularity ranking's."""
    histories, targets = sample_users(split.test, users)
    quality: dict[str, Any] = {"users": len(histories)}
    for exclude in (False, True):
        base = len(histories) * int(exclude)

        def report(done: int, base: int = base) -> None:
            task(base + done, 2 * len(histories), "")

        ranking = rank_offline(
            engine,
            verifier,
            catalog,
            layout,
            histories,
            exclude_history=exclude,
            progress=report,
        )
        name = "history_excluded" if exclude else "history_allowed"
        quality[name] = metrics(ranking.rows, targets) | {"valid_drafts": ranking.valid_share}
        quality[name]["ms_per_user"] = ranking.ms_per_user
    quality["popularity"] = metrics(popularity_ranking(catalog, len(histories)), targets)
    return quality


def _semantic_ids(
    dataset: Dataset, config: BuildConfig, track: Track
) -> tuple[np.ndarray, tuple[int, ...], ResidualQuantizer | None]:
    items = dataset.items
    if items.sids is not None and items.levels is not None:
        return items.sids, items.levels, None
    if items.embeddings is None:
        raise ValueError("the catalogue has neither semantic IDs nor embeddings to make them from; add one of them")
    with track("semantic IDs") as task:
        quantizer = fit_residual_kmeans(
            items.embeddings, config.levels, config.training.seed, lambda done, total: task(done, total, "")
        )
    return quantizer.encode(items.embeddings), config.levels, quantizer


def _model(space: SemanticIdSpace, config: BuildConfig) -> tuple[NezhaModel, PromptLayout]:
    if config.checkpoint is not None:
        return with_sid_tokens(config.checkpoint, space, config.max_history, config.sid_tokens)
    layout = PromptLayout.contiguous(space, config.max_history)
    shape = config.shape
    backbone = backbone_config(
        shape.family,
        vocab_size=layout.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden_size // shape.heads,
        max_position_embeddings=max(512, layout.max_tokens),
    )
    return NezhaModel(backbone, space.levels), layout


def _version(config: BuildConfig) -> str:
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-seed{config.training.seed}"


def read_attributes(bundle_path: Path) -> dict[str, dict[str, str]]:
    """Display attributes of a bundle's items by item id; empty if it has none."""
    path = bundle_path / ATTRIBUTES
    if not path.exists():
        return {}
    return {row.pop("item_id"): row for row in pq.read_table(path).to_pylist()}
