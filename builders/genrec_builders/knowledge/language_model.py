"""Trains a small causal language model to write knowledge texts, where no pretrained one can be had.

The result is an ordinary Hugging Face folder (Qwen3, byte-level BPE): whatever takes it takes any checkpoint on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from genrec.model.backbone import backbone_config
from genrec_builders.config import TrainingConfig
from genrec_builders.knowledge.texts import KnowledgeText
from genrec_builders.training.loop import Curves, Progress, train
from genrec_builders.training.objective import padded

EOS, PAD = "<eos>", "<pad>"
_TRAINING = TrainingConfig(epochs=2, learning_rate=2e-3, warmup_share=0.03, dropout=0.0, tokens_per_batch=768)


@dataclass(frozen=True)
class LanguageModelConfig:
    """A recipe. vocabulary: tokens, 258 or more. texts: how many of those given are trained on, drawn at random."""

    texts: int = 1500
    vocabulary: int = 3000
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    max_tokens: int = 1024
    training: TrainingConfig = field(default=_TRAINING)


def train_language_model(
    texts: Sequence[KnowledgeText],
    path: Path,
    config: LanguageModelConfig = LanguageModelConfig(),
    state_path: Path | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> Curves:
    """Train a tokenizer and a model to continue each prompt by its text and an end token; write both to `path`.

    The loss counts the text and the end token only. state_path: as for `training.loop.train`. Returns the loss per
    epoch, in nats per token. Raises ValueError for no texts, a vocabulary without room for the bytes, or a text that is
    longer than the model's positions.
    """
    if not texts:
        raise ValueError("there are 0 texts to train on; give at least 1")
    seed = config.training.seed
    drawn = np.random.default_rng(seed).permutation(len(texts))[: config.texts]
    texts = [texts[i] for i in drawn.tolist()]
    tokenizer = train_tokenizer((text.prompt + text.text for text in texts), config.vocabulary)
    examples = _Examples([encode_example(tokenizer, text) for text in texts], config.training.epochs)
    if (longest := max(map(len, examples.tokens))) > config.max_tokens:
        raise ValueError(f"a prompt and its text have {longest} tokens; the model has {config.max_tokens} positions")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        backbone_config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.hidden_size // config.heads,
            max_position_embeddings=config.max_tokens,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _incline_to_copy(model)
    # The loop asks of an objective only a model and a loss, and of a source only batches.
    curves = train(cast(Any, _TextObjective(model)), [cast(Any, examples)], config.training, None, state_path, progress)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return curves


@torch.no_grad()
def _incline_to_copy(model: Any) -> None:
    """Let attention start with looking for the same token and passing on what it finds.

    After mimetic initialisation (arXiv 2305.09828): keys equal queries, and outputs are transposed values, at a scale
    that tells. Texts repeat names of their prompts, which a model with random weights takes many times longer to copy.
    """
    config = model.config
    groups, size = config.num_key_value_heads, config.head_dim
    for layer in model.model.layers:
        attention = layer.self_attn
        # Query heads that share keys and values: the first one's queries are the keys.
        attention.k_proj.weight.copy_(attention.q_proj.weight.unflatten(0, (groups, -1, size))[:, 0].flatten(0, 1))
        values = attention.v_proj.weight.normal_(std=config.hidden_size**-0.5).unflatten(0, (groups, size))
        attention.o_proj.weight.copy_(values.repeat_interleave(config.num_attention_heads // groups, 0).flatten(0, 1).T)


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens. Raises ValueError for less than one per byte and two special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + 2:
        raise ValueError(f"vocabulary is {vocabulary}; use at least {len(alphabet) + 2}: the bytes, {EOS} and {PAD}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=[EOS, PAD],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


@dataclass(frozen=True)
class Example:
    """tokens: int32 [P + T], a prompt's and then its text's with the end token. prompt: P."""

    tokens: np.ndarray
    prompt: int

    def __len__(self) -> int:
        return len(self.tokens)


def encode_example(tokenizer: Any, text: KnowledgeText) -> Example:
    """Prompt and text are encoded apart, as they are when the text is being written."""
    # "<eos>" in a title is a title's text, not the end.
    prompt, answer = (tokenizer(part, split_special_tokens=True).input_ids for part in (text.prompt, text.text))
    return Example(np.array([*prompt, *answer, tokenizer.eos_token_id], np.int32), len(prompt))


class _Examples:
    """Batches of examples alike in length; a `genrec_builders.training.examples.Source`.

    The first of several epochs has only the shorter half: from short prompts, a model learns to copy names soonest.
    """

    def __init__(self, tokens: list[Example], epochs: int) -> None:
        self.tokens, self._epochs = tokens, epochs

    def plan(self, seed: int, epoch: int, tokens_per_batch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch])
        lengths = np.array(list(map(len, self.tokens)))
        order = np.lexsort((rng.random(lengths.size), lengths))
        batches, at = [], order.size // 2 if epoch == 0 < self._epochs - 1 else order.size
        while at > 0:  # from the longest down, so that the first of a batch sets its width
            size = max(1, tokens_per_batch // int(lengths[order[at - 1]]))
            batches.append(order[max(0, at - size) : at])
            at -= size
        return batches

    def batch(self, examples: np.ndarray, seed: int, epoch: int) -> list[Example]:
        return [self.tokens[i] for i in examples.tolist()]


class _TextObjective(nn.Module):
    """Mean cross-entropy of the texts' tokens under a causal language model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: list[Example]) -> Tensor:
        # Attention is causal and padding stands at the end, so that no mask is needed.
        token_ids, lengths = padded([example.tokens for example in batch])
        at = torch.arange(token_ids.shape[1])
        first = torch.tensor([example.prompt for example in batch])
        counted = (at >= first[:, None]) & (at < lengths[:, None])
        device = self.model.device
        hidden = self.model.model(input_ids=token_ids.to(device), use_cache=False).last_hidden_state
        # The token at p is predicted at p - 1; the rest of the vocabulary's products are not made.
        logits = self.model.lm_head(hidden[:, :-1][counted[:, 1:].to(device)])
        return F.cross_entropy(logits.float(), token_ids[:, 1:][counted[:, 1:]].to(device))
