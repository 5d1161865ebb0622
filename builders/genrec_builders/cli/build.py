"""`genrec build`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from genrec.bundle import Bundle
from genrec.bundle.checkpoint_shapes import DECODERS, DRAFT_HEAD, FAMILIES, HeadShape
from genrec.catalog import SemanticIdSpace
from genrec.cli.arguments import numbers, one_of, usage
from genrec.prompt import Limits
from genrec_builders.cli.arguments import (
    AttributeTypes,
    DataPath,
    Seed,
    SplitAt,
    attribute_types,
    markers,
    print_quality,
)
from genrec_builders.config import (
    DATA,
    DROPOUTS,
    HEAD_ALONE_DROPOUTS,
    HEAD_ALONE_LEARNING_RATE,
    SID_SOURCES,
    BackboneShape,
    BuildConfig,
    TrainingConfig,
)


def _option(panel: str, text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **limits)


_backbone = partial(_option, "Backbone")
_training = partial(_option, "Training")
_DEFAULT = TrainingConfig()
_OF_A_HEAD = frozenset({"head_dropout", "head_scales", "state_size", "transition_size", "attention_heads"})
_OF_A_NEW_BACKBONE = frozenset({"family", "hidden_size", "layers", "heads"})
_MOST_CODES = 1_000_000  # of a level


def _by_decoder(text: str, place: int) -> str:
    usual = ", ".join(f"{each[place]} for {name}" for name, each in DROPOUTS.items())
    return f"{text}; by default {usual}, {HEAD_ALONE_DROPOUTS[place]:g} with --freeze-backbone."


def build(
    context: typer.Context,
    data: DataPath,
    out: Annotated[Path, typer.Argument(help="Where the bundle goes; one that is there is replaced.")],
    levels: Annotated[
        str, typer.Option(help="Codes per level, commas between, of semantic IDs that are made.")
    ] = "128,128,128",
    sid_source: Annotated[
        Optional[str],
        typer.Option(
            help="What semantic IDs are made of: data takes those that the data has; embeddings; behaviour, who bought "
            "what in the training part; both. By default data, embeddings or behaviour, the first that there is.",
            callback=one_of(SID_SOURCES),
        ),
    ] = None,
    sids_of: Annotated[
        Optional[Path],
        typer.Option(help="A bundle whose items keep their semantic IDs; new items get the nearest. With its levels."),
    ] = None,
    distinct_sids: Annotated[
        bool, typer.Option("--distinct-sids", help="An item whose semantic ID is taken gets the nearest free one.")
    ] = False,
    beam_width: Annotated[int, typer.Option(min=2, help="Beams drafted; at least twice the largest top_k.")] = 128,
    max_top_k: Annotated[int, typer.Option(min=1, help="The largest top_k that a request may ask for.")] = 50,
    max_history: Annotated[int, typer.Option(min=1, help="Most recent items kept in a prompt.")] = 20,
    max_query: Annotated[int, typer.Option(min=0, help="Tokens kept of a text query; 0 trains without queries.")] = 0,
    decoder: Annotated[
        str,
        typer.Option(help="draft_head, or beam_search over the backbone, the baseline.", callback=one_of(DECODERS)),
    ] = "draft_head",
    evaluate_users: Annotated[
        Optional[int], typer.Option(min=1, help="Test users to evaluate; all by default.")
    ] = None,
    attribute_type: AttributeTypes = None,
    split_at: SplitAt = None,
    seed: Seed = 0,
    family: Annotated[
        str, _backbone("Family to train from scratch: qwen3, llama, qwen2 or mistral.", callback=one_of(FAMILIES))
    ] = "qwen3",
    hidden_size: Annotated[
        int,
        _backbone(
            "Width of the hidden states; the feed-forward layers' inner width is three times it.", min=16, max=65536
        ),
    ] = 128,
    layers: Annotated[int, _backbone("Transformer layers.", min=1, max=1024)] = 4,
    heads: Annotated[int, _backbone("Attention heads of a layer.", min=1, max=1024)] = 4,
    state_size: Annotated[
        int, _backbone("Width of a beam's state in the draft head.", min=1, max=65536)
    ] = HeadShape.state_size,
    transition_size: Annotated[
        int, _backbone("Inner width of the draft head's transitions from level to level.", min=1, max=65536)
    ] = HeadShape.transition_size,
    attention_heads: Annotated[
        int, _backbone("Attention heads with which the draft head reads the history; 0 for one that does not.", min=0)
    ] = HeadShape.attention_heads,
    checkpoint: Annotated[
        Optional[Path], _backbone("Start from this Hugging Face folder (Qwen2, Qwen3, Llama, Mistral) or bundle.")
    ] = None,
    adapter: Annotated[
        Optional[Path], _backbone("LoRA adapter of peft to merge into --checkpoint, if it lies apart from it.")
    ] = None,
    sid_tokens: Annotated[
        Optional[str],
        _backbone("SID tokens per level in the tokenizer of --checkpoint's folder, e.g. '<a_{}>,<b_{}>,<c_{}>'."),
    ] = None,
    item_markers: Annotated[
        Optional[str],
        _backbone("Tokens of --checkpoint's tokenizer around each item, e.g. '<|sid_begin|>,<|sid_end|>'."),
    ] = None,
    epochs: Annotated[
        int, _training("Passes over the training data; 0 leaves the weights random, to measure speed.", min=0)
    ] = _DEFAULT.epochs,
    learning_rate: Annotated[
        Optional[float],
        _training(
            f"Peak learning rate of the backbone; by default {_DEFAULT.learning_rate:g}, "
            f"{HEAD_ALONE_LEARNING_RATE:g} with --freeze-backbone.",
            min=1e-7,
            max=1,
        ),
    ] = None,
    head_scales: Annotated[
        str,
        _training(
            "The draft head's learning rates, as factors on the backbone's: of its code embeddings, transitions and "
            "projections, commas between."
        ),
    ] = "1,1,1",
    dropout: Annotated[Optional[float], _training(_by_decoder("Dropout in the backbone", 0), min=0, max=0.9)] = None,
    head_dropout: Annotated[
        Optional[float], _training(_by_decoder("Dropout within the draft head", 1), min=0, max=0.9)
    ] = None,
    tokens_per_batch: Annotated[
        int, _training("Packed tokens of a batch, of each process.", min=1)
    ] = _DEFAULT.tokens_per_batch,
    auxiliary_weight: Annotated[
        float, _training("Weight of the next-token loss on the history.", min=0, max=1000)
    ] = _DEFAULT.auxiliary_weight,
    validation_users: Annotated[
        int, _training("Users whose validation items choose the best epoch; 0 keeps the last one.", min=0)
    ] = 0,
    patience: Annotated[
        int, _training("Stop after so many epochs without a better validation result; 0 for never.", min=0)
    ] = 0,
    keep: Annotated[
        bool, typer.Option(help="Keep a bundle that is there if it was built of the same; refuse any other.")
    ] = False,
    freeze_backbone: Annotated[bool, _training("Train the draft head and the placeholders alone.")] = False,
    tensorboard: Annotated[
        Optional[Path], _training("Folder for TensorBoard: losses by level, learning rates, validation, speed.")
    ] = None,
    precision: Annotated[
        str, _training("Mixed precision: no, bf16 or fp16.", callback=one_of(("no", "bf16", "fp16")))
    ] = _DEFAULT.precision,
) -> None:
    """Make a bundle: semantic IDs, training, ONNX export, evaluation. Goes on where it was interrupted.

    On N GPUs: `torchrun --nproc-per-node N --no-python genrec build ...`.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    # By its name: typer has a click of its own, from some release on.
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    for names, ignored, reason in (
        (_OF_A_HEAD, decoder != DRAFT_HEAD, f"--decoder {decoder} has no draft head"),
        (_OF_A_NEW_BACKBONE, checkpoint is not None, f"the backbone of --checkpoint {checkpoint} has its own"),
        ({"levels", "sid_source"}, sids_of is not None, f"--sids-of {sids_of} says what semantic IDs are"),
        ({"patience"}, patience and not validation_users, "without --validation-users no epoch is known to be better"),
    ):
        if ignored and (found := min(given & names, default="")):
            option = f"--{found.replace('_', '-')} {context.params[found]}"
            raise typer.BadParameter(f"{option} would change nothing: {reason}; leave it out")
    training = _training_config(
        decoder,
        head_scales,
        dropout,
        head_dropout,
        learning_rate,
        epochs=epochs,
        tokens_per_batch=tokens_per_batch,
        auxiliary_weight=auxiliary_weight,
        patience=patience,
        freeze_backbone=freeze_backbone,
        precision=precision,
        seed=seed,
    )
    _require_heads(hidden_size, heads)
    for option, value in {"--sid-tokens": sid_tokens, "--adapter": adapter, "--item-markers": item_markers}.items():
        if value is not None and checkpoint is None:
            raise typer.BadParameter(f"{option} '{value}': belongs to a checkpoint, so give --checkpoint too")
    if freeze_backbone and decoder != DRAFT_HEAD:
        raise typer.BadParameter(f"--freeze-backbone trains a draft head alone, and --decoder {decoder} has none")
    if freeze_backbone and checkpoint is None:
        raise typer.BadParameter("--freeze-backbone needs a trained backbone: give --checkpoint too")
    with usage():
        head = HeadShape(state_size, transition_size, attention_heads)
    config = _build_config(
        levels,
        sid_tokens,
        max_top_k,
        sid_source=sid_source,
        sids_of=sids_of,
        distinct_sids=distinct_sids,
        max_history=max_history,
        max_query=max_query,
        beam_width=beam_width,
        decoder=decoder,
        head=head,
        shape=BackboneShape(family, hidden_size, 3 * hidden_size, layers, heads, heads),
        checkpoint=checkpoint,
        adapter=adapter,
        item_markers=None if item_markers is None else markers(item_markers),
        training=training,
        validation_users=validation_users,
        split_at=split_at,
        evaluate_users=evaluate_users,
    )

    kinds = attribute_types(attribute_type)
    if sids_of is not None:
        config = replace(config, levels=Bundle(sids_of).manifest.levels)

    from genrec_builders.preflight import require_places

    require_places(out, [data, checkpoint, adapter, sids_of])
    if tensorboard is not None:
        from genrec_builders.training.tracking import require_tracking

        require_tracking(tensorboard, [data, out, checkpoint, adapter, sids_of])

    from genrec.reporting.progress import track
    from genrec_builders.build import build_bundle, is_built
    from genrec_builders.data import read_dataset
    from genrec_builders.sid_sources import sid_source as source_of

    dataset = read_dataset(data, typer.echo, kinds, track)
    if "levels" in given and source_of(dataset.items, config) == DATA:
        typer.echo(f"--levels {levels}: not used, the data has semantic IDs; `--sid-source behaviour` makes others")
    if keep and is_built(dataset, out, config):
        typer.echo(f"{out} is kept: it was built of the same data and settings")
        return
    manifest = build_bundle(dataset, out, config, track, tensorboard)
    if manifest is None:  # not the main process under torchrun
        return
    typer.echo(f"bundle {manifest.bundle_version} in {out}")
    print_quality(manifest.training["quality"])


def _training_config(
    decoder: str,
    head_scales: str,
    dropout: float | None,
    head_dropout: float | None,
    learning_rate: float | None,
    **settings: Any,
) -> TrainingConfig:
    """What is not given is what suits the decoder, or a head alone. settings: what `TrainingConfig` takes as it is."""
    alone = settings["freeze_backbone"]
    usual = HEAD_ALONE_DROPOUTS if alone else DROPOUTS[decoder]
    usual_rate = HEAD_ALONE_LEARNING_RATE if alone else _DEFAULT.learning_rate
    code_embeddings, transitions, projections = numbers(
        "--head-scales", head_scales, float, count=3, least=0.0, most=1e6
    )
    return TrainingConfig(
        code_embedding_scale=code_embeddings,
        transition_scale=transitions,
        projection_scale=projections,
        dropout=usual[0] if dropout is None else dropout,
        head_dropout=usual[1] if head_dropout is None else head_dropout,
        learning_rate=usual_rate if learning_rate is None else learning_rate,
        **settings,
    )


def _require_heads(hidden_size: int, heads: int) -> None:
    """Rotary positions turn pairs of a head's numbers: its width, hidden size over heads, is even."""
    if hidden_size % (2 * heads):
        raise typer.BadParameter(
            f"--hidden-size {hidden_size} must be a multiple of {2 * heads}, twice --heads {heads}: change one of them"
        )


def _patterns(sid_tokens: str) -> tuple[str, ...]:
    from genrec_builders.training.checkpoint_tokens import require_patterns

    patterns = tuple(sid_tokens.split(","))
    with usage("--sid-tokens", sid_tokens):
        require_patterns(patterns)
    return patterns


def _build_config(levels: str, sid_tokens: str | None, max_top_k: int, **settings: Any) -> BuildConfig:
    """Ten items are asked for by default, or as many as may be. settings: what `BuildConfig` takes as it is."""
    sizes = numbers("--levels", levels, int, least=1, most=_MOST_CODES)
    with usage():
        SemanticIdSpace(sizes)
    return BuildConfig(
        levels=sizes,
        sid_tokens=None if sid_tokens is None else _patterns(sid_tokens),
        limits=Limits(top_k=max_top_k, default_top_k=min(10, max_top_k)),
        **settings,
    )
