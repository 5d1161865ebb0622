"""Starts from a trained backbone: a Hugging Face checkpoint, with a LoRA adapter or without, or a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from genrec.bundle import CHECKPOINT, MANIFEST, TOKENIZER, Bundle
from genrec.catalog import SemanticIdSpace
from genrec.errors import in_words
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.checkpoint import load_checkpoint
from genrec.prompt import PromptLayout, runs_of, text_vocabulary
from genrec.reporting.progress import console
from genrec_builders.training.checkpoint_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from genrec_builders.training.checkpoint_config import CONFIG, without_window
from genrec_builders.training.checkpoint_facts import (
    CheckpointFacts,
    bundle_findings,
    read_facts,
    require_nothing_of_a_folder,
)
from genrec_builders.training.checkpoint_findings import Finding, count, require_usable
from genrec_builders.training.checkpoint_tensors import HEAD, unused
from genrec_builders.training.checkpoint_tokens import (
    find_markers,
    match_sid_tokens,
    read_vocabulary,
    require_patterns,
    text_finding,
)


def print_line(text: str) -> None:
    """To the terminal, once where several processes train."""
    if os.environ.get("RANK", "0") == "0":
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Opened:
    """A trained backbone with an embedding for each token of the layout.

    layout: maps SID codes to the backbone's tokens. heads: per level, the rows of the codes in an output head that is
    not the token embedding, float32 [T_l, d] each; None where it is. tokenizer: the file for text queries, if any.
    """

    backbone: PreTrainedModel
    layout: PromptLayout
    heads: tuple[Tensor, ...] | None
    tokenizer: Path | None


def open_backbone(
    checkpoint: Path,
    space: SemanticIdSpace,
    max_history: int,
    sid_tokens: tuple[str, ...] | None = None,
    max_query: int = 0,
    say: Callable[[str], None] = print_line,
    adapter: Path | None = None,
    item_markers: tuple[str, str] | None = None,
) -> Opened:
    """The backbone in the folder `checkpoint`, and the layout that maps SID codes to its tokens.

    sid_tokens: per level, how the tokenizer writes a code, "{}" standing for the number, e.g. "<a_{}>". Tokens that
    the tokenizer holds keep their ids and embeddings; all others, and the placeholders, are added behind the
    vocabulary. At a level with a pattern one token must be held at least; an empty pattern adds a level of new ones.
    max_query: tokens kept of a text query; with any, the bundle needs a copy of that `tokenizer.json`. say: is told
    what is used, new and dropped, line by line. adapter: of LoRA, merged into the weights. item_markers: tokens that
    begin and end an item.

    Raises ValueError before the weights are loaded for what is missing or not supported; see `read_facts`.
    """
    if (checkpoint / MANIFEST).exists():
        require_nothing_of_a_folder(checkpoint, sid_tokens=sid_tokens, adapter=adapter, item_markers=item_markers)
        return _of_bundle(Bundle(checkpoint), space, max_history, max_query, say)
    if sid_tokens is not None:
        require_patterns(sid_tokens, space.depth)
    facts = read_facts(checkpoint, adapter)
    layout, findings = _layout(facts, space, max_history, sid_tokens, max_query, item_markers)
    _require_positions(checkpoint, facts.config["max_position_embeddings"], layout)
    _require_window(facts, layout)
    for finding in [*facts.findings, *findings]:
        say(str(finding))
    backbone, head, dropped = _load(facts)
    for finding in dropped:
        say(str(finding))
    heads = None if head is None else _rows_of(head, layout, backbone.config.initializer_range)
    tokenizer = facts.tokenizer_folder / TOKENIZER if max_query else None
    return Opened(_with_room(backbone, layout), layout, heads, tokenizer)


def _layout(
    facts: CheckpointFacts,
    space: SemanticIdSpace,
    max_history: int,
    sid_tokens: tuple[str, ...] | None,
    max_query: int,
    item_markers: tuple[str, str] | None,
) -> tuple[PromptLayout, list[Finding]]:
    """The layout of a checkpoint's tokens, and what there is to say about them. Raises ValueError for a refusal."""
    folder = facts.tokenizer_folder
    needed = "text queries need it" if max_query else "sid_tokens names tokens in it" if any(sid_tokens or ()) else ""
    needed = needed or ("item_markers names tokens in it" if item_markers else "")
    vocabulary = read_vocabulary(folder, needed, text=max_query > 0)
    free = max(facts.rows, max(vocabulary.values(), default=-1) + 1)
    if free + sum(space.levels) > np.iinfo(np.int32).max:
        # Before anything is counted out: the layout says which level it is.
        PromptLayout.contiguous(space, max_history)
    matched, findings = match_sid_tokens(vocabulary, facts.rows, sid_tokens or [""] * space.depth, space.levels)
    markers, found = find_markers(vocabulary, facts.rows, item_markers)
    findings += found
    require_usable(facts.folder, facts.findings)
    require_usable(folder, findings)
    maps = []
    for known, size in zip(matched, space.levels, strict=True):
        ids = np.full(size, -1)
        ids[list(known)] = list(known.values())
        added = np.flatnonzero(ids < 0)
        ids[added] = free + np.arange(added.size)
        free += added.size
        maps.append(runs_of(ids))
    if max_query:
        findings += text_finding(vocabulary, facts.rows, [each for known in matched for each in known.values()])
    bos = facts.config["bos_token_id"]
    layout = PromptLayout(
        space=space,
        prefix=() if bos is None else (bos,),
        placeholders=tuple(range(free, free + space.depth)),
        sid_tokens=tuple(maps),
        max_history=max_history,
        max_query=max_query,
        text_tokens=text_vocabulary(folder / TOKENIZER) if max_query else 0,
        markers=markers,
    )
    return layout, findings


def _load(facts: CheckpointFacts) -> tuple[PreTrainedModel, Tensor | None, list[Finding]]:
    """The backbone, an output head that is not the embedding, [rows, d], and findings on what only torch can tell.

    Raises ValueError if a part is missing or left out.
    """
    folder = facts.folder
    wants_head = facts.has_head is not False and not facts.tied
    with TemporaryDirectory() as links:
        if facts.adapter is not None:  # where peft is installed, transformers would take the adapter on its own account
            for path in folder.iterdir():
                if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                    (Path(links) / path.name).symlink_to(path.resolve())
        place = folder if facts.adapter is None else Path(links)
        try:
            config = AutoConfig.from_pretrained(place, attn_implementation="sdpa")
            if facts.window is not None:
                without_window(config)
            options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
            loaded, info = (AutoModelForCausalLM if wants_head else AutoModel).from_pretrained(place, **options)
            changes = {} if facts.adapter is None else load_file(facts.adapter.folder / ADAPTER_WEIGHTS)
        except Exception as error:  # what a file can bring transformers to raise has no class in common
            raise ValueError(f"{folder / facts.file}: cannot be read: {in_words(error)}; get it again") from error
    missing = sorted(info["missing_keys"])
    backbone, head = loaded, None
    if wants_head:
        backbone, head = loaded.model, loaded.lm_head.weight.detach()
        if HEAD in missing:  # of a pickle that has none
            missing.remove(HEAD)
            head = None
    if missing:
        raise ValueError(f"{folder / facts.file}: tensor {missing[0]} is missing{count(missing)}")
    within, findings = unused(info["unexpected_keys"], facts.shapes, facts.config)
    if within:
        raise ValueError(
            f"{folder / facts.file}: tensor {within[0]} would not be used by its config.json{count(within)}"
        )
    if facts.adapter is not None:
        head = _merge(backbone, head, facts.adapter, changes)
    return backbone, head, [finding for finding in findings if finding not in facts.findings]


def _merge(
    backbone: PreTrainedModel, head: Tensor | None, adapter: Adapter, changes: dict[str, Tensor]
) -> Tensor | None:
    """Put an adapter into the weights of `backbone`, in float32; returns the output head with its part of it."""
    if adapter.rows is not None and adapter.rows != backbone.config.vocab_size:
        backbone.resize_token_embeddings(adapter.rows, mean_resizing=False)
    parameters = dict(backbone.named_parameters())
    with torch.no_grad():
        for name, own in adapter.whole.items():
            if name in parameters:
                parameters[name].copy_(changes[own].float())
            elif head is not None:
                head = changes[own].float()
        for name, update in adapter.updates.items():
            delta = update.scale * (changes[update.up].float() @ changes[update.down].float())
            target = parameters[name] if name in parameters else head
            assert target is not None
            target += delta.T if update.embedding else delta
    return head


def _rows_of(head: Tensor, layout: PromptLayout, deviation: float) -> tuple[Tensor, ...]:
    """Per level, an output head's rows of the codes; random where it has none."""
    rows = []
    for level, size in enumerate(layout.space.levels):
        tokens = torch.from_numpy(layout.level_tokens(level).astype(np.int64))
        held = tokens < len(head)
        own = torch.randn(size, head.shape[1]) * deviation
        own[held] = head[tokens[held]]
        rows.append(own)
    return tuple(rows)


def _of_bundle(
    bundle: Bundle, space: SemanticIdSpace, max_history: int, max_query: int, say: Callable[[str], None]
) -> Opened:
    """The backbone of a bundle of either decoder; placeholders are added where its prompts have none."""
    bundle.check()
    if bundle.space != space:
        raise ValueError(f"{bundle.path}: has levels {bundle.space.levels}, the semantic IDs have {space.levels}")
    old = bundle.layout
    if max_query > 0 and old.max_query == 0:
        raise ValueError(f"{bundle.path}: was not trained with text queries; leave them out or train anew")
    free = old.vocabulary_size
    layout = replace(
        old,
        max_history=max_history,
        max_query=max_query,
        text_offset=old.text_offset if max_query else 0,
        text_tokens=old.text_tokens if max_query else 0,
        placeholders=old.placeholders or tuple(range(free, free + space.depth)),
    )
    model = load_checkpoint(bundle.path / CHECKPOINT)
    _require_positions(bundle.path / CHECKPOINT, model.config.max_position_embeddings, layout)
    for finding in bundle_findings(bundle):
        say(str(finding))
    heads = model.heads if isinstance(model, AutoregressiveModel) else None
    own = None if heads is None else tuple(head.detach() for head in heads)
    return Opened(_with_room(model.model, layout), layout, own, bundle.path / TOKENIZER if max_query else None)


def _require_positions(folder: Path, positions: int, layout: PromptLayout) -> None:
    """Raises ValueError for prompts that are longer than the backbone has positions."""
    if positions < (need := layout.max_tokens):
        raise ValueError(
            f"{folder / CONFIG}: max_position_embeddings {positions} is below the longest prompt's {need} "
            f"tokens; build with a max_history below {layout.max_history}, or from a checkpoint with more positions"
        )


def _require_window(facts: CheckpointFacts, layout: PromptLayout) -> None:
    """Raises ValueError for prompts that are longer than what each layer attends to."""
    if facts.window is not None and facts.window < (need := layout.max_tokens):
        raise ValueError(
            f"{facts.folder / CONFIG}: a sliding window of {facts.window} tokens is in use, and the longest prompt has "
            f"{need}, which is not supported; build with a max_history below {layout.max_history}"
        )


def _with_room(backbone: PreTrainedModel, layout: PromptLayout) -> PreTrainedModel:
    """`backbone` with an embedding for each of the layout's tokens."""
    if layout.vocabulary_size > backbone.config.vocab_size:
        backbone.resize_token_embeddings(layout.vocabulary_size, mean_resizing=False)
        backbone.config.vocab_size = layout.vocabulary_size
    return backbone
