"""A checkpoint's tokenizer: which of its tokens are codes of semantic IDs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter

from tokenizers import Tokenizer

from genrec.bundle import TOKENIZER
from genrec.errors import in_words
from genrec_builders.training.checkpoint_config import read_json_object, require_no_pointer
from genrec_builders.training.checkpoint_findings import NEW, REFUSE, UNUSABLE, USE, WARNING, Finding, examples

_WRITE = "`AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes it from the files of an older tokenizer"
_DECODER = "added_tokens_decoder"
_MARKER = re.compile(r"<\|?(?:sid|item)_?(?:begin|start|end|stop)\|?>")


def require_pattern(pattern: str) -> None:
    """Raise ValueError for a SID token pattern that has not one place for the code, as str.format writes it."""
    try:
        fields = [part for part in Formatter().parse(pattern) if part[1] is not None]
        good = len(fields) == 1 and fields[0][1] in ("", "0") and fields[0][3] is None and bool(pattern.format(0))
    except (ValueError, LookupError):
        good = False
    if not good:
        raise ValueError(
            f"SID token pattern {pattern!r}: must have one {{}}, which stands for the code, e.g. '<a_{{}}>'; "
            "or be empty, for a level of new tokens"
        )


def require_patterns(patterns: Sequence[str], depth: int | None = None) -> None:
    """Raise ValueError for patterns of SID tokens that cannot be meant. depth: levels of the semantic IDs, if known."""
    if depth is not None and len(patterns) != depth:
        raise ValueError(f"sid_tokens has {len(patterns)} patterns, the semantic IDs have {depth} levels")
    seen: dict[str, int] = {}
    for level, pattern in enumerate(patterns):
        if not pattern:
            continue
        require_pattern(pattern)
        if pattern in seen:
            raise ValueError(f"levels {seen[pattern]} and {level} have the same SID token pattern {pattern!r}")
        seen[pattern] = level


def read_vocabulary(folder: Path, needed_for: str = "", text: bool = False) -> dict[str, int]:
    """Token ids of the tokenizer, empty without one. Raises ValueError.

    needed_for: why it must be there. text: whether text is to be read. Without a `tokenizer.json`, as in older folders,
    added tokens are known from other files, and text is not.
    """
    path = folder / TOKENIZER
    if path.exists():
        require_no_pointer(path)
        try:
            return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception as error:  # the package raises no class of its own
            raise ValueError(f"{path}: is no tokenizer: {in_words(error)}; get it again") from error
    vocabulary = {} if text else _added_tokens(folder)
    if needed_for and not vocabulary:
        raise ValueError(f"{path}: is missing, but {needed_for}; {_WRITE}")
    return vocabulary


def _added_tokens(folder: Path) -> dict[str, int]:
    """Of a tokenizer without a `tokenizer.json`: tokens that were added, and those of a vocabulary in JSON."""
    found: dict[str, int] = {}
    for name in ("vocab.json", "added_tokens.json", "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        content = read_json_object(path)
        try:
            if name == "tokenizer_config.json":
                content = {each["content"]: int(number) for number, each in content.get(_DECODER, {}).items()}
            if not all(type(number) is int and number >= 0 for number in content.values()):
                raise ValueError("a token's id is no whole number")
        except UNUSABLE as error:
            raise ValueError(f"{path}: cannot be read: {in_words(error)}; get it again") from error
        found |= content
    return found


def match_sid_tokens(
    vocabulary: Mapping[str, int], rows: int, patterns: Sequence[str], levels: Sequence[int] | None = None
) -> tuple[list[dict[int, int]], list[Finding]]:
    """Token id of each code that the tokenizer has, per level, and what is to say about them.

    rows: of the embedding; tokens beyond them are given too, but do not count as found. patterns: see
    `require_patterns`. levels: codes per level; without, as many as the tokenizer has tokens for.
    """
    matched, findings = [], []
    for level, pattern in enumerate(patterns):
        size = levels[level] if levels is not None else None
        names = (pattern.format(code) for code in range(len(vocabulary) if size is None else size)) if pattern else ()
        ids = {code: vocabulary[name] for code, name in enumerate(names) if name in vocabulary}
        matched.append(ids)
        findings.append(
            _level_finding(level, pattern, max(ids, default=-1) + 1 if size is None else size, ids, rows, vocabulary)
        )
    return matched, findings


def find_markers(
    vocabulary: Mapping[str, int], rows: int, markers: tuple[str, str] | None
) -> tuple[tuple[int, ...], list[Finding]]:
    """Token ids of the tokens that begin and end an item, none without, and what is to say about them."""
    if markers is None:
        there = sorted(filter(_MARKER.fullmatch, vocabulary), key=vocabulary.__getitem__)
        text = f"the tokenizer has {examples(there)}: if such tokens stand around each item in the checkpoint's"
        return (), [Finding(WARNING, f"{text} training, name them with --item-markers")] if there else []
    for name in markers:
        if name not in vocabulary:
            like = difflib.get_close_matches(name, vocabulary, 3, 0.6)
            has = f"; it has {', '.join(like)}" if like else ""
            return (), [
                Finding(REFUSE, f"{TOKENIZER}: has no token {name!r}, an item marker{has}; mend --item-markers")
            ]
        if vocabulary[name] >= rows:
            text = f"{TOKENIZER}: token {name!r}, an item marker, has no row among the {rows} of the embedding"
            return (), [Finding(REFUSE, f"{text}; save the model after resize_token_embeddings")]
    return tuple(vocabulary[name] for name in markers), [Finding(USE, f"{' and '.join(markers)} around each item")]


def text_finding(vocabulary: Mapping[str, int], rows: int, sid_tokens: Iterable[int] = ()) -> list[Finding]:
    """What is to say about tokens of text, all but `sid_tokens`: those that have no row in the embedding."""
    sids = set(sid_tokens)
    rowless = [name for name, number in vocabulary.items() if number >= rows and number not in sids]
    if not rowless:
        return []
    verb = "has" if len(rowless) == 1 else "have"
    text = f"{len(rowless)} of the tokenizer's {len(vocabulary)} tokens {verb} no row in the embedding"
    return [Finding(WARNING, f"{text}; new and random: {examples(sorted(rowless, key=vocabulary.__getitem__))}")]


def _level_finding(
    level: int, pattern: str, size: int, ids: Mapping[int, int], rows: int, vocabulary: Mapping[str, int]
) -> Finding:
    if not pattern:
        return Finding(NEW, f"level {level}, no pattern: {size or 'all its'} new tokens with random embeddings")
    rowless = [code for code, number in ids.items() if number >= rows]
    found = len(ids) - len(rowless)
    if not found and rowless:
        return Finding(
            REFUSE,
            f"{TOKENIZER}: level {level}: none of the tokens {pattern!r} is trained: the tokenizer has {len(rowless)} "
            f"of them, but the embedding, of {rows} rows, has no rows for them; save the model after "
            "resize_token_embeddings",
        )
    if not found:
        like = difflib.get_close_matches(pattern.format(0), _sid_like(vocabulary, len(pattern)), 3, 0.4)
        has = f"; it has {', '.join(like)}" if like else ""
        count = f"the {size} tokens" if size else "the tokens"
        return Finding(
            REFUSE,
            f"{TOKENIZER}: level {level}: holds none of {count} {pattern!r}, e.g. {pattern.format(0)}{has}; mend the "
            "pattern, or leave it empty for a level of new tokens",
        )
    if found == size:
        return Finding(USE, f"level {level}, {pattern!r}: all {size} SID tokens found")
    text = f"level {level}, {pattern!r}: {found} of {size} SID tokens found"
    if absent := [code for code in range(size) if code not in ids]:
        text += f"; new and random: {examples([pattern.format(code) for code in absent])}"
    if rowless:
        names = examples([pattern.format(code) for code in rowless])
        text += f"; new and random: {names}, which the tokenizer holds without a row in the embedding"
    return Finding(WARNING, text)


def _sid_like(vocabulary: Iterable[str], length: int) -> list[str]:
    """Tokens that may be meant for codes: with a digit and a sign, not much longer than what was looked for."""
    return [
        name
        for name in vocabulary
        if len(name) <= length + 8 and not name.isalnum() and any(letter.isdigit() for letter in name)
    ]


# Files
