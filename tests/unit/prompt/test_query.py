"""Queries as tokens: what the tokenizer makes of any text, what it must never make, and requests that carry one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, processors

from genrec.catalog import Catalog, SemanticIdSpace
from genrec.errors import InvalidRequest
from genrec.prompt import (
    Limits,
    Preprocessor,
    PromptLayout,
    QueryTokenizer,
    QueryTokenizerError,
    Request,
    text_vocabulary,
)
from genrec_builders.training.query import train_query_tokenizer

SPACE = SemanticIdSpace((4, 8, 6))
MAX_QUERY = 6
CORPUS = ["2-Person Tent", "tents", "Gas Stove", "Café", "a_1", "tent for two", "gas tents"] * 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "tokenizer.json"
    train_query_tokenizer(CORPUS, path, 300)
    return path


@pytest.fixture(scope="module")
def layout(file: Path) -> PromptLayout:
    return PromptLayout.contiguous(SPACE, 5, MAX_QUERY, text_vocabulary(file))


@pytest.fixture(scope="module")
def tokenizer(file: Path, layout: PromptLayout) -> QueryTokenizer:
    return QueryTokenizer(file, layout)


# Any text


@given(st.text(max_size=60))
def test_any_text_gives_text_tokens_only(tokenizer: QueryTokenizer, layout: PromptLayout, text: str) -> None:
    (tokens,) = tokenizer.encode_batch([text.encode()])
    assert tokens.dtype == np.int32 and len(tokens) <= MAX_QUERY
    assert (tokens >= layout.text_offset).all() and (tokens < layout.vocabulary_size).all()
    assert bool(text.strip()) or not tokens.size


@given(st.lists(st.text(max_size=12), max_size=8))
def test_a_batch_gives_what_each_gives_alone(tokenizer: QueryTokenizer, texts: list[str]) -> None:
    queries = [text.encode() for text in texts]
    alone = [tokenizer.encode_batch([query])[0].tolist() for query in queries]
    assert [tokens.tolist() for tokens in tokenizer.encode_batch(queries)] == alone


def test_case_width_and_spacing_do_not_matter(tokenizer: QueryTokenizer) -> None:
    first, *others = tokenizer.encode_batch(
        [text.encode() for text in ("gas tent", "GAS Tent", "  gas \t\n tent ", "\uff27\uff21\uff33\u3000tent")]
    )
    assert 0 < first.size < MAX_QUERY
    assert all(other.tolist() == first.tolist() for other in others)


def test_the_first_tokens_are_kept(tokenizer: QueryTokenizer) -> None:
    short, long = tokenizer.encode_batch([b"qzj", b"qzjxwv 7913 qqq zzz"])
    assert long.size == MAX_QUERY
    assert long[: short.size].tolist() == short.tolist()


def test_what_stands_far_behind_is_not_read(tokenizer: QueryTokenizer) -> None:
    start = "qz " * MAX_QUERY  # at least a token each
    for far in ("gas", "x" * 100_000, "\ufdfa" * 100_000):  # the last becomes 18 characters each
        texts = (start, start + far, start + " " * 1000 + far)
        short, long, spaced = tokenizer.encode_batch([text.encode() for text in texts])
        assert short.tolist() == long.tolist() == spaced.tolist()
    one, behind = tokenizer.encode_batch([b"gas", b" " * 5000 + b"gas"])
    assert one.tolist() == behind.tolist()


def test_white_space_is_no_query(tokenizer: QueryTokenizer) -> None:
    texts = ["", " ", "\t\n", "\u3000\u00a0", "\x1f"]
    assert [tokens.size for tokens in tokenizer.encode_batch([text.encode() for text in texts])] == [0] * len(texts)


# A tokenizer of the backbone's own


def own_tokenizer(path: Path) -> Path:
    """Byte-level, with BOS and SID tokens added, and a post-processor, padding and truncation that must not act."""
    train_query_tokenizer(CORPUS, path / "tokenizer.json", 300)
    own = Tokenizer.from_file(str(path / "tokenizer.json"))
    own.add_special_tokens(["<s>", "<|end|>"])
    own.add_tokens([AddedToken(f"<{letter}_{code}>") for letter in "abc" for code in range(8)])
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", own.token_to_id("<s>"))]
    )
    own.enable_padding(length=50)
    own.enable_truncation(3)
    own.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def test_text_that_spells_a_sid_token_stays_text(tmp_path: Path) -> None:
    file = own_tokenizer(tmp_path)
    own = Tokenizer.from_file(str(file))
    own.no_padding()
    own.no_truncation()
    base = text_vocabulary(file)
    known = own.get_vocab()
    sid_tokens = tuple(
        tuple((known[f"<{letter}_{code}>"], 1) for code in range(size))
        for letter, size in zip("abc", SPACE.levels, strict=True)
    )
    for text_tokens in (base, own.get_vocab_size()):  # the layout may or may not count the added ones
        layout = PromptLayout(
            SPACE, prefix=(known["<s>"],), placeholders=(400, 401, 402), sid_tokens=sid_tokens, max_history=5,
            max_query=40, text_tokens=text_tokens,
        )  # fmt: skip
        tokenizer = QueryTokenizer(file, layout)
        text = "tent <a_1> <b_2><c_3> <s> <|end|>"
        assert not {known["<a_1>"], known["<b_2>"], known["<c_3>"], known["<|end|>"]}.isdisjoint(own.encode(text).ids)
        (tokens,) = tokenizer.encode_batch([text.encode()])
        assert tokens.max() < base and tokens.size > 20, "the characters are still there"
        (plain,) = tokenizer.encode_batch([b"gas tent"])
        assert plain.tolist() == own.encode("gas tent", add_special_tokens=False).ids


# Files that cannot be used


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "is no tokenizer"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is no tokenizer"),
        (lambda path: path.write_bytes(b"[" * 100_000), "is no tokenizer"),
        (lambda path: path.write_bytes(b"[]"), "is no tokenizer"),
        (lambda path: path.write_bytes(b"{}"), "is no tokenizer"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is no tokenizer"),
        (
            lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"type": "?"}})),
            "is no tok",
        ),
        (lambda path: Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).save(str(path)), "is no tokenizer"),
    ],
    ids=["missing", "empty", "not UTF-8", "deep", "list", "object", "cut short", "other model", "no unknown token"],
)
def test_damaged_files_are_refused(
    file: Path, layout: PromptLayout, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes(file.read_bytes())
    damage(copy)
    with pytest.raises(QueryTokenizerError, match=says):
        QueryTokenizer(copy, layout)


def test_more_tokens_than_the_layout_has_are_refused(file: Path) -> None:
    size = text_vocabulary(file)
    with pytest.raises(QueryTokenizerError, match=f"has {size} tokens, the layout has room for {size - 1}"):
        QueryTokenizer(file, PromptLayout.contiguous(SPACE, 5, MAX_QUERY, size - 1))


def test_without_the_package_it_says_what_to_install(
    file: Path, layout: PromptLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(QueryTokenizerError, match=r"pip install 'genrec-triton\[query\]'"):
        QueryTokenizer(file, layout)


def test_the_package_is_loaded_only_when_needed() -> None:
    program = (
        "import sys, genrec.bundle, genrec.prompt.preprocessor, genrec.golden; sys.exit('tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Requests


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    sids = np.random.default_rng(0).integers(0, SPACE.levels, (20, 3)).astype(np.int32)
    return Catalog.build([f"item-{row}" for row in range(20)], sids, np.arange(20))


def request(history: list[str], query: bytes = b"") -> Request:
    return Request(np.array([item.encode() for item in history], object), np.empty(0, object), query=query)


@pytest.fixture(scope="module")
def preprocessor(catalog: Catalog, layout: PromptLayout, tokenizer: QueryTokenizer) -> Preprocessor:
    return Preprocessor(catalog, layout, Limits(query_bytes=64), tokenizer)


def test_a_prompt_is_empty_only_without_history_and_query(
    preprocessor: Preprocessor, catalog: Catalog, layout: PromptLayout, tokenizer: QueryTokenizer
) -> None:
    nothing, blank, query, unknown, both = preprocessor.prepare(
        [
            request([]),
            request(["?"], b" \n"),
            request([], b"gas tent"),
            request(["?"], b"gas tent"),
            request(["item-3", "?"], b"gas tent"),
        ]
    )
    tokens = tokenizer.encode_batch([b"gas tent"])[0].tolist()
    tail = list(layout.placeholders)
    assert nothing.prompt.size == blank.prompt.size == 0
    assert query.prompt.tolist() == unknown.prompt.tolist() == [1, *tokens, *tail]
    assert both.prompt.tolist() == [1, *tokens, *layout.tokens_of(catalog.sids[3]), *tail]
    assert {one.prompt.dtype for one in (nothing, query, both)} == {np.dtype(np.int32)}
    assert [one.unknown for one in (nothing, blank, query, unknown, both)] == [0, 1, 0, 1, 1]


def test_requests_with_and_without_queries_do_not_mix(preprocessor: Preprocessor) -> None:
    asked = [request(["item-1"] * n, query) for n in range(3) for query in (b"", b"gas", b"tents for two", b"  ")]
    for one in asked:
        preprocessor.validate(one)
    together = preprocessor.prepare(asked)
    for one, prepared in zip(asked, together, strict=True):
        assert preprocessor.prepare([one])[0].prompt.tolist() == prepared.prompt.tolist()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"a tent \xff", r"query is not valid UTF-8: .* at byte 7, b'\\xff'; encode the text as UTF-8"),
        (b"\xed\xa0\x80", "query is not valid UTF-8"),
        (b"cut \xc3", "query is not valid UTF-8"),
        (b"q" * 65, "query has 65 bytes; at most 64 are accepted, shorten it"),
        (b"\xff" * 65, "query has 65 bytes"),
    ],
)
def test_queries_that_are_refused(preprocessor: Preprocessor, query: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        preprocessor.validate(request(["item-1"], query))


def test_a_query_is_refused_where_nobody_trained_with_any(catalog: Catalog) -> None:
    preprocessor = Preprocessor(catalog, PromptLayout.contiguous(SPACE, 5), Limits())
    preprocessor.validate(request(["item-1"]))
    with pytest.raises(InvalidRequest, match=r"query 'a tent' was given, .* not trained with text queries"):
        preprocessor.validate(request(["item-1"], b"a tent"))
