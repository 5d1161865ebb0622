"""Makes a text tokenizer for queries, and tokens of a dataset's queries to train with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from genrec.prompt import QueryTokenizer
from genrec_builders.data import ItemTable

VOCABULARY = 2000


@dataclass(frozen=True)
class EncodedQueries:
    """The tokens of N queries, each distinct text once.

    which: int32 [N], each query's row in the others. tokens: int32 [D, W], padded with 0 behind the end, W at most
    the layout's max_query. lengths: int32 [D], 0 for no query.
    """

    which: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


def query_corpus(items: ItemTable, queries: pa.Array | None) -> Iterator[str]:
    """The texts that a query tokenizer learns from: the items' attributes, then `queries` (use training's only)."""
    yield from map(" ".join, zip(*items.attributes.values(), strict=True))
    if queries is not None:
        yield from (query for query in queries.to_pylist() if query)


def train_query_tokenizer(corpus: Iterable[str], path: Path, vocabulary: int = VOCABULARY) -> int:
    """Write a byte-level BPE of at most `vocabulary` tokens (256 or more) to `path`; returns how many it has.

    Its text is NFKC, lower case, with single spaces. The same corpus gives the same file. Raises ValueError for a
    vocabulary without room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet):
        raise ValueError(f"vocabulary is {vocabulary}; use at least {len(alphabet)}, one token per byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    tokenizer.train_from_iterator(corpus, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def encode_queries(tokenizer: QueryTokenizer, queries: pa.Array) -> EncodedQueries:
    """Tokens of `queries`, large_string [N] without nulls ("" for none), as the server makes them."""
    distinct = queries.dictionary_encode()
    tokens = tokenizer.encode_batch([query.encode() for query in distinct.dictionary.to_pylist()])
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    padded = np.zeros((len(tokens), int(lengths.max(initial=0))), np.int32)
    if tokens:
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(tokens)
    return EncodedQueries(distinct.indices.to_numpy(zero_copy_only=False).astype(np.int32), padded, lengths)
