"""Starts from a Hugging Face checkpoint of the Qwen3 or Llama family, and trains the draft head on it.

    python examples/own_checkpoint.py WORK [CHECKPOINT]

Without CHECKPOINT, a small Qwen3 with random weights stands in for one. Its tokenizer already has tokens for the
semantic IDs (`<a_0>`, `<b_0>`, ...), as checkpoints of generative recommenders do: their embeddings are kept.
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Qwen3Config, Qwen3Model

from genrec.pipeline import Pipeline
from genrec.reporting.progress import track
from genrec_builders.build import build_bundle
from genrec_builders.config import BuildConfig, TrainingConfig
from genrec_builders.data.demo_shop import make_demo_shop

LEVELS = (16, 16, 16)
SID_TOKENS = ("<a_{}>", "<b_{}>", "<c_{}>")


def stand_in(folder: Path) -> Path:
    """A checkpoint as transformers saves it: config.json, model.safetensors, tokenizer.json."""
    names = ["<pad>", "<bos>", *(name.format(code) for name in SID_TOKENS for code in range(16))]
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    config = Qwen3Config(
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=1,
    )
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


work = Path(sys.argv[1])
checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else stand_in(work / "checkpoint")
shop = make_demo_shop(n_items=400, n_users=400)
config = BuildConfig(
    levels=LEVELS,
    beam_width=100,
    checkpoint=checkpoint,
    sid_tokens=SID_TOKENS,
    # For a checkpoint that already recommends, freeze_backbone=True trains the draft head and the placeholders alone.
    training=TrainingConfig(epochs=2),
)
manifest = build_bundle(shop, work / "bundle", config, track)
assert manifest is not None
print("parameters", manifest.training["parameters"])

history = shop.items.item_ids[:3]
print("recommended:", ", ".join(Pipeline.open(work / "bundle").recommend([history], top_k=5)[0].item_ids))
