"""Pieces of a text: together they are the text of all tokens, and none ends within a character."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from genrec.knowledge.detokenizer import UNFINISHED, Detokenizer

CORPUS = ["a tent for two, olive green", "Müller & Söhne: 5 €", "テント 二人用", "🏕️ 👩‍👩‍👧 🇯🇵", "  two  spaces "]
SPECIAL, ADDED = ["<s>", "</s>"], ["<tool>", " 🏕️ ", "two"]
ALPHABET = st.sampled_from([*"aetw ,.▁", "ü", "€", "テ", "🏕", "\u200d", "\ufe0f", "🇯", "two", "  ", "\n", "é"])


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: spaces are ▁, what is not in the vocabulary is its bytes, and the first space is dropped."""
    seen = sorted({*"▁aetwo"})
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *seen, "▁t", "▁tw"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "t"), ("▁t", "w")], byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


MADE = {"byte level": byte_level, "byte fallback": byte_fallback, "metaspace": metaspace}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=MADE[kind](), bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    made.add_tokens(ADDED)
    return made


def decoder(kind: str) -> Callable[[np.ndarray], str]:
    tokenizer = tokenizer_of(kind)
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def in_pieces(kind: str, tokens: list[int], ends: list[int]) -> list[str]:
    """The pieces of `tokens`, cut at `ends`."""
    stream = Detokenizer(decoder(kind))
    cuts = [0, *sorted(end % (len(tokens) + 1) for end in ends), len(tokens)]
    return [stream.add(np.array(tokens[one:two], np.int32)) for one, two in pairwise(cuts)]


@pytest.mark.parametrize("kind", MADE)
@given(words=st.lists(st.one_of(ALPHABET, st.sampled_from([*SPECIAL, *ADDED])), max_size=30), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_pieces_are_the_text(kind: str, words: list[str], data: st.DataObject) -> None:
    """Texts with special and added tokens in them, cut anywhere, also within a character."""
    tokens = tokenizer_of(kind)("".join(words), add_special_tokens=False).input_ids
    pieces = in_pieces(kind, tokens, data.draw(st.lists(st.integers(0, 1000), max_size=20)))
    assert "".join(pieces) == decoder(kind)(np.array(tokens, np.int32)).rstrip(UNFINISHED)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_pieces_of_any_tokens_are_their_text(data: st.DataObject) -> None:
    """Also of bytes that are no characters, which byte-level tokens may be."""
    some = st.integers(0, len(tokenizer_of("byte level")) - 1)
    tokens = data.draw(st.lists(some, max_size=40))
    pieces = in_pieces("byte level", tokens, data.draw(st.lists(st.integers(0, 1000), max_size=20)))
    assert "".join(pieces) == decoder("byte level")(np.array(tokens, np.int32)).rstrip(UNFINISHED)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_character_comes_whole(kind: str) -> None:
    tokens = tokenizer_of(kind)("ж 🦊✓", add_special_tokens=False).input_ids
    assert len(tokens) > 6  # bytes
    pieces = in_pieces(kind, tokens, list(range(len(tokens))))
    assert [piece for piece in pieces if piece.strip()] == ["ж", "🦊", "✓"]
    assert in_pieces(kind, tokens[:-1], list(range(len(tokens))))[-1] == "", "half a character is left out"


def test_long_texts_are_not_decoded_again() -> None:
    most = 0

    def decode(tokens: np.ndarray) -> str:
        nonlocal most
        most = max(most, tokens.size)
        return "x" * tokens.size

    stream = Detokenizer(decode)
    assert "".join(stream.add(np.zeros(3, np.int32)) for _ in range(1000)) == "x" * 3000
    assert most <= 6
