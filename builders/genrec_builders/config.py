"""What decides what a build makes. Imports nothing heavy: the command line shows the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DRAFT_HEAD, HeadShape
from genrec.prompt import Limits

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from genrec.prompt import PromptLayout

# What semantic IDs are made of: the data's own are taken as they are, or made from embeddings, from who bought what in
# training, or from both.
DATA, EMBEDDINGS, BEHAVIOUR, BOTH = SID_SOURCES = ("data", "embeddings", "behaviour", "both")
KEPT = "a bundle"


@dataclass(frozen=True)
class BackboneShape:
    """A backbone trained from scratch; see transformers' configuration of the family for the fields.

    head_dim: None for hidden_size / heads.
    """

    family: str = "qwen3"
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    head_dim: int | None = None

    def config(self, layout: PromptLayout) -> PretrainedConfig:
        """The configuration that transformers builds it from, with an embedding and a position for every token."""
        from genrec.model.backbone import backbone_config

        return backbone_config(
            self.family,
            vocab_size=layout.vocabulary_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim or self.hidden_size // self.heads,
            max_position_embeddings=max(512, layout.max_tokens + layout.space.depth),
        )


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters of one run; the defaults, with its DROPOUTS, are the reference run's (docs/quality.md).

    learning_rate: the backbone's. code_embedding_scale, transition_scale, projection_scale: factors on it for the
    draft head's three kinds of parameters; the paper, on a pretrained backbone, uses 100, 10 and 1.
    dropout, head_dropout: in the backbone and within the draft head, see `add_dropout`.
    tokens_per_batch: packed tokens, padding included, per process. auxiliary_weight: of the next-token loss on the
    history. patience: epochs without a better validation metric before training stops early, 0 for never; with a
    validation metric the best epoch's weights are kept either way. freeze_backbone: train the draft head and the
    placeholders' embeddings alone. precision: "no", "bf16" or "fp16", as accelerate names them.
    """

    epochs: int = 18
    learning_rate: float = 2e-3
    code_embedding_scale: float = 1.0
    transition_scale: float = 1.0
    projection_scale: float = 1.0
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    dropout: float = 0.1
    head_dropout: float = 0.0
    tokens_per_batch: int = 2048
    auxiliary_weight: float = 0.5
    gradient_clip: float = 1.0
    patience: int = 0
    freeze_backbone: bool = False
    precision: str = "no"
    seed: int = 0


# dropout and head_dropout that are better for each decoder after a dozen epochs (docs/recipe.md): the draft head
# learns faster and overfits first.
DROPOUTS = {DRAFT_HEAD: (0.2, 0.1), BEAM_SEARCH: (0.1, 0.0)}
# What is better for a head alone, which its backbone teaches (docs/checkpoints.md).
HEAD_ALONE_DROPOUTS, HEAD_ALONE_LEARNING_RATE = (0.0, 0.0), 4e-3


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides what a build makes.

    levels: codes per level, of semantic IDs that are made. sid_source: one of SID_SOURCES, None for the first that the
    data has. sids_of: a bundle, whose levels are `levels`: its items keep their semantic IDs, whatever sid_source says.
    distinct_sids: no two items have the same. checkpoint: a trained backbone to start from, instead of
    `shape` from scratch: a Hugging Face folder, or a bundle (docs/checkpoints.md). With the former: sid_tokens, its
    tokenizer's SID tokens per level, "{}" standing for the code, e.g. ("<a_{}>", "<b_{}>"), of which those that it
    lacks are added; adapter, the folder of a LoRA adapter to merge; item_markers, the tokens that begin and end an
    item. decoder: a draft head, of the sizes `head`, or beam search over the backbone, the baseline.
    max_query: tokens kept of a text query, 0 to train without queries. validation_users: whose validation items choose
    the best epoch, 0 for none. split_at: the moment before which interactions train, see `split_by_time`; None for
    leave-one-out.
    """

    levels: tuple[int, ...] = (128, 128, 128)
    sid_source: str | None = None
    sids_of: Path | None = None
    distinct_sids: bool = False
    max_history: int = 20
    max_query: int = 0
    beam_width: int = 128
    decoder: str = DRAFT_HEAD
    head: HeadShape = field(default_factory=HeadShape)
    limits: Limits = field(default_factory=Limits)
    shape: BackboneShape = field(default_factory=BackboneShape)
    checkpoint: Path | None = None
    sid_tokens: tuple[str, ...] | None = None
    adapter: Path | None = None
    item_markers: tuple[str, str] | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation_users: int = 0
    split_at: str | None = None
    evaluate_users: int | None = None
