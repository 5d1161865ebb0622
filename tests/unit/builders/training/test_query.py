"""Queries for training: the tokenizer that is made of a shop's texts, its texts as tokens, and a checkpoint's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoModel

from genrec.catalog import SemanticIdSpace
from genrec.model.backbone import backbone_config
from genrec.prompt import PromptLayout, QueryTokenizer, text_vocabulary
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.training.checkpoint import open_backbone
from genrec_builders.training.query import encode_queries, query_corpus, train_query_tokenizer

SPACE = SemanticIdSpace((4, 8, 6))
MAX_QUERY = 6
CORPUS = ["2-Person Tent", "tents", "Gas Stove", "Café", "a_1", "tent for two", "gas tents"] * 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "tokenizer.json"
    train_query_tokenizer(CORPUS, path, 300)
    return path


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> QueryTokenizer:
    return QueryTokenizer(file, PromptLayout.contiguous(SPACE, 5, MAX_QUERY, text_vocabulary(file)))


def test_the_same_corpus_gives_the_same_file(file: Path, tmp_path: Path) -> None:
    """In another process too, where hashes are others."""
    program = "import sys; from pathlib import Path; "
    program += "from genrec_builders.training.query import train_query_tokenizer as train; "
    program += f"print(train({CORPUS!r}, Path(sys.argv[1]), 300))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "t.json"], capture_output=True, check=True)
    assert (tmp_path / "t.json").read_bytes() == file.read_bytes()
    assert int(done.stdout) == text_vocabulary(file) > 256


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 256"):
        train_query_tokenizer(CORPUS, tmp_path / "t.json", 255)


def test_the_corpus_is_items_and_queries() -> None:
    shop = make_demo_shop(100, 3)
    texts = list(query_corpus(shop.items, pa.array(["", "a tent"], pa.large_string())))
    assert len(texts) == 101 and texts[-1] == "a tent"
    for name in ("title", "category", "brand"):
        assert shop.items.attributes[name][0] in texts[0]
    assert len(list(query_corpus(shop.items, None))) == 100


def test_encoded_queries_hold_each_text_once(tokenizer: QueryTokenizer) -> None:
    texts = ["gas tent", "", "tents", "gas tent", " ", "2-person tent for two with gas"]
    encoded = encode_queries(tokenizer, pa.array(texts, pa.large_string()))
    assert encoded.tokens.shape == (5, MAX_QUERY) and encoded.tokens.dtype == np.int32
    for text, which in zip(texts, encoded.which.tolist(), strict=True):
        size = encoded.lengths[which]
        assert encoded.tokens[which, :size].tolist() == tokenizer.encode_batch([text.encode()])[0].tolist()
        assert not encoded.tokens[which, size:].any()
    none = encode_queries(tokenizer, pa.array(["", ""], pa.large_string()))
    assert none.which.tolist() == [0, 0] and none.lengths.tolist() == [0] and none.tokens.shape == (1, 0)
    assert encode_queries(tokenizer, pa.array([], pa.large_string())).which.size == 0


def test_sid_tokens_that_are_words_are_left_out(tmp_path: Path) -> None:
    """The vocabulary itself has them, so only the layout can tell."""
    words = ["<unk>", "tent", *(f"<{letter}_{code}>" for letter in "abc" for code in range(8))]
    own = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    own.save(str(tmp_path / "tokenizer.json"))
    config = backbone_config(
        "llama", vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, bos_token_id=0,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path)
    patterns = ("<a_{}>", "<b_{}>", "<c_{}>")
    opened = open_backbone(tmp_path, SPACE, 20, patterns, max_query=4)
    backbone, layout = opened.backbone, opened.layout
    assert (layout.max_query, layout.text_offset, layout.text_tokens) == (4, 0, len(words))
    assert backbone.config.vocab_size == layout.vocabulary_size == len(words) + 3
    tokenizer = QueryTokenizer(tmp_path / "tokenizer.json", layout)
    assert [tokens.tolist() for tokens in tokenizer.encode_batch([b"tent", b"<a_1>", b"<b_7>"])] == [[1], [], []]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="missing, but text queries need it"):
        open_backbone(tmp_path, SPACE, 20, max_query=4)
