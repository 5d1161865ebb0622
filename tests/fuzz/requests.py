"""What a request says: its history, counts, query, rules, and the prompt of a text."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from genrec.catalog import Catalog, Columns, ItemIndex, SemanticIdSpace
from genrec.errors import InvalidRequest
from genrec.knowledge.prompt import PromptLimits, item_prompt, user_prompt
from genrec.prompt import Limits, Preprocessor, PromptLayout, QueryTokenizer, Request, text_vocabulary
from genrec.rules import RuleBook
from genrec.verifier import Verifier
from genrec_builders.training.query import train_query_tokenizer
from tests.fuzz.hostile import INTEGERS, TEXTS, mutated, tampered, text, written
from tests.fuzz.runner import Feed, Finding, Target

ITEMS, SPACE = 400, SemanticIdSpace((16, 16, 16))
LIMITS = Limits(top_k=30, exclude=50, history=200, query_bytes=200)
BEAMS = 8
KINDS = {"category": "string", "tags": "strings", "price": "number", "in_stock": "boolean", "added": "timestamp"}
NAMES = (
    "where", "all", "any", "not", "attribute", "is", "in", "not_in", "<", "<=", ">", ">=", "allow", "deny", "at_most",
    "boost", "bucket_order", "explain", "items", "add", "times", "highest", "lowest", "rotate", *KINDS,
)  # fmt: skip
GOOD: list[dict[str, Any]] = [
    {"where": {"all": [{"attribute": "category", "in": ["a", "b"]}, {"attribute": "price", "<": 50, ">=": 1.5}]}},
    {"where": {"not": {"attribute": "tags", "in": ["x"]}}, "deny": ["item-1", "item-2"], "explain": True},
    {"where": {"attribute": "added", ">": "2026-01-01T00:00:00Z", "<=": "2026-12-31"}, "allow": ["item-3"]},
    {"at_most": [{"attribute": "category", "items": 2}], "bucket_order": {"highest": "price"}},
    {"boost": [{"where": {"attribute": "in_stock", "is": True}, "add": 1.5}, {"attribute": "price", "times": 0.1}]},
    {"bucket_order": {"rotate": 5}, "where": {"any": [{"attribute": "category", "not_in": ["c"]}]}},
]


def catalog() -> Catalog:
    """Items with attributes of every kind."""
    rng = np.random.default_rng(0)
    values: dict[str, list[Any]] = {
        "category": rng.choice(["a", "b", "c"], ITEMS).tolist(),
        "tags": [["x", "y"][: at % 3] for at in range(ITEMS)],
        "price": rng.uniform(0, 100, ITEMS).tolist(),
        "in_stock": [bool(at % 2) for at in range(ITEMS)],
        "added": [datetime(2026, 6, 1, tzinfo=timezone.utc)] * ITEMS,
    }
    sids = rng.integers(0, SPACE.levels, (ITEMS, SPACE.depth)).astype(np.int32)
    ids = [f"item-{row}" for row in range(ITEMS)]
    return Catalog.build(ids, sids, rng.integers(0, 20, ITEMS), columns=Columns.of_values(KINDS, values))


def rules_text(rng: random.Random) -> bytes:
    """Rules, good ones tampered with."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(64))
    found = rng.choice(GOOD)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        found = mutated(rng, found, NAMES)
    return written(rng, found) if rng.random() < 0.7 else json.dumps(found).encode()


@contextmanager
def reading_rules(scratch: Path) -> Iterator[Feed]:
    book = RuleBook(KINDS)

    def feed(rng: random.Random) -> None:
        data = rules_text(rng)
        read = book.read(data)
        if book.read(read) != read:
            raise Finding(f"rules that mean something else when they are read again: {data[:200]!r}")

    yield feed


@contextmanager
def answering_by_rules(scratch: Path) -> Iterator[Feed]:
    items, book = catalog(), RuleBook(KINDS)
    verifier = Verifier(items, ItemIndex.build(SPACE, items))
    codes = SPACE.encode(items.sids[:BEAMS])[None]
    scores = np.linspace(-1, -5, BEAMS, dtype=np.float32)[None]

    def feed(rng: random.Random) -> None:
        text = book.read(rules_text(rng))
        applied = book.applied(items, text) if text else None
        found = verifier.verify(codes, scores, [np.array([rng.randrange(ITEMS)])], np.array([10]), [applied])
        if found.rows.size > 10 or np.unique(found.rows).size < found.rows.size or not np.isfinite(found.scores).all():
            raise Finding(f"a wrong answer: {found}")

    yield feed


def ids(rng: random.Random, most: int) -> np.ndarray:
    """Ids as Triton gives them: bytes as objects, of any content and number."""
    size = rng.choice((0, 1, 3, 20, most, most + 1, 3 * most)) if rng.random() < 0.3 else rng.randrange(5)
    found = np.empty(size, object)
    for at in range(size):
        kind = rng.randrange(3)
        if kind == 0:
            found[at] = b"item-%d" % rng.randrange(ITEMS + 5)
        elif kind == 1:
            found[at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        else:
            found[at] = rng.randbytes(rng.choice((0, 1, 7, 8, 9, 300)))
    return found


@contextmanager
def preprocessing(scratch: Path) -> Iterator[Feed]:
    items = catalog()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "tokenizer.json"
        train_query_tokenizer(["gas stove", "a tent for two"], path, 300)
        layout = PromptLayout.contiguous(SPACE, 20, 8, text_vocabulary(path))
        with_text = Preprocessor(items, layout, LIMITS, QueryTokenizer(path, layout), RuleBook(KINDS))
        without = Preprocessor(items, PromptLayout.contiguous(SPACE, 20), LIMITS, None, RuleBook(KINDS))

    def feed(rng: random.Random) -> None:
        request = Request(
            history=ids(rng, LIMITS.history),
            exclude=ids(rng, LIMITS.exclude),
            top_k=rng.choice((None, 1, 30, 31, *(number for number in INTEGERS if abs(number) < 2**31))),
            allow_history=rng.random() < 0.5,
            query=rng.choice(
                (
                    b"",
                    b" ",
                    b"gas stove",
                    tampered(rng, b"gas stove <a_12> \xf0\x9f\x98\x80"),
                    rng.randbytes(rng.choice((5, 201))),
                ),
            ),
            rules=rules_text(rng) if rng.random() < 0.1 else b"",
        )
        one = with_text if rng.random() < 0.8 else without
        one.validate(request)
        (prepared,) = one.prepare([request])
        if prepared.prompt.size > layout.max_tokens or prepared.prompt.max(initial=0) >= layout.vocabulary_size:
            raise Finding(f"a prompt outside its layout: {prepared.prompt.tolist()}")
        if not 0 <= prepared.blocked.min(initial=0) <= prepared.blocked.max(initial=0) < ITEMS:
            raise Finding(f"blocked rows outside the catalogue: {prepared.blocked.tolist()}")

    yield feed


@contextmanager
def prompting(scratch: Path) -> Iterator[Feed]:
    limits = PromptLimits(history=20)

    def given(rng: random.Random) -> Any:
        return tampered(rng, b"A tent\nfor two") if rng.random() < 0.5 else text(rng)

    def feed(rng: random.Random) -> None:
        if rng.random() < 0.5:
            size = rng.choice((0, 1, 2, 20, 21))
            history = [{rng.choice(("title", "title", "category", "x")): given(rng)} for _ in range(size)]
            prompt = user_prompt(history, limits)
        else:
            prompt = item_prompt({text(rng): given(rng) for _ in range(rng.randrange(4))}, limits)
        if len(prompt.splitlines()) > 60 and "\x0b" not in prompt:
            raise Finding(f"a prompt with lines that are not the template's: {prompt[:200]!r}")

    yield feed


_NAMED = r"^(rules|top_k|history|exclude|query|item|title|category|attribute)\b"
TARGETS = [
    Target("rules", reading_rules, (InvalidRequest,), share=20, says=r"^rules: "),
    Target("rules-answered", answering_by_rules, (InvalidRequest,), share=3, says=r"^rules: "),
    Target("request", preprocessing, (InvalidRequest,), share=14, says=_NAMED),
    Target("prompt", prompting, (InvalidRequest,), share=6, says=_NAMED),
]
