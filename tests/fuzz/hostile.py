"""Hostile values, and what is left of good ones when somebody has tampered with them."""

from __future__ import annotations

import json
import random
from typing import Any

OUTSIDE = "../outside/secret"
INTEGERS = (
    0, 1, -1, 2, 7, 255, 256, 4096, 65_535, 10**6, 2**24, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1,
    2**63, -(2**63), 2**64, 10**30, 10**400, -(10**400),
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", " ", "\0", "a\0", "a", "item-1", "item-399", "\u00e9", "\u202e", "\ufeff", "\U0001f600", "\ud800", "A" * 300,
    "A" * 70_000, OUTSIDE, f"../{OUTSIDE}", "/etc/passwd", "..", ".", "a/../../b", "NaN", "null", "%s%n", "1e999",
    "2026-11-29", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "classification",
)  # fmt: skip


def integer(rng: random.Random) -> int:
    """Of any size."""
    return rng.choice(INTEGERS) if rng.random() < 0.7 else rng.getrandbits(rng.choice((8, 31, 64))) - 100


def text(rng: random.Random) -> str:
    """Any text, also one that cannot be encoded."""
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x300)))) for _ in range(rng.randrange(12)))


def scalar(rng: random.Random) -> Any:
    """A value that JSON has, or that its readers take."""
    kind = rng.randrange(5)
    if kind == 0:
        return integer(rng)
    if kind == 1:
        return rng.choice(FLOATS)
    return text(rng) if kind < 4 else rng.choice((None, True, False))


def value(rng: random.Random, names: tuple[str, ...] = (), depth: int = 3) -> Any:
    """A value of JSON. names: that its objects may have, beside others."""
    kind = rng.randrange(6) if depth else 0
    if kind < 4:
        return scalar(rng)
    size = rng.randrange(4)
    if kind == 4:
        return [value(rng, names, depth - 1) for _ in range(size)]
    return {
        rng.choice(names) if names and rng.random() < 0.8 else text(rng): value(rng, names, depth - 1)
        for _ in range(size)
    }


def mutated(rng: random.Random, good: Any, names: tuple[str, ...] = ()) -> Any:
    """A copy of `good`, of JSON, with some of it replaced, left out, doubled or renamed. Good ones stay as they are."""
    if isinstance(good, dict):
        if rng.random() < 0.1 or not good:
            return value(rng, names)
        changed = dict(good)
        at = rng.choice(list(changed))
        kind = rng.randrange(10)
        if kind == 0:
            del changed[at]
        elif kind == 1:
            changed[rng.choice(names) if names else text(rng)] = value(rng, names)
        elif kind == 2:
            changed[text(rng)] = changed.pop(at)
        else:
            changed[at] = mutated(rng, changed[at], names)
        return changed
    if isinstance(good, list):
        if rng.random() < 0.15 or not good:
            return value(rng, names)
        place, kind = rng.randrange(len(good)), rng.randrange(6)
        if kind == 0:
            return good[:place] + good[place + 1 :]
        if kind == 1:
            return good[:place] + good[place : place + 1] * rng.choice((2, 3, 300)) + good[place:]
        return [*good[:place], mutated(rng, good[place], names), *good[place + 1 :]]
    if isinstance(good, int) and not isinstance(good, bool) and rng.random() < 0.6:
        return rng.choice(
            (
                integer(rng),
                good + 1,
                good - 1,
                -good,
                good + 0.5 if abs(good) < 2**53 else 1e300,
                str(good) if abs(good) < 2**99 else "9" * 99,
            )
        )
    return scalar(rng) if rng.random() < 0.8 else value(rng, names)


def written(rng: random.Random, found: Any) -> bytes:
    """JSON of a value; now and then with what is no JSON, or nested very deep."""
    try:
        data = json.dumps(found, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        data = b"{}"
    kind = rng.random()
    if kind < 0.02:
        deep = rng.choice((20, 100, 1000, 30_000))
        opening, closing = rng.choice(((b"[", b"]"), (b'{"all":[', b"]}"), (b'{"not":', b"}"), (b'{"a":', b"}")))
        return b'{"where":' + opening * deep + (b"1" + closing * deep if rng.random() < 0.5 else b"") + b"}"
    return tampered(rng, data) if kind < 0.3 else data


def tampered(rng: random.Random, data: bytes, rounds: int = 3) -> bytes:
    """Bytes with some of them changed, cut, put in, repeated or taken from elsewhere in them."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, rounds + 1)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            del found[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8)))
        elif kind == 3 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 4 and found:
            found[at % len(found)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x7B, 0x5B))
        elif kind == 5:
            size = rng.choice((4, 8))
            number = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)) % 2 ** (8 * size)
            found[at : at + size] = number.to_bytes(size, "little")
        elif kind == 6:
            found[at:at] = found[at : at + rng.choice((1, 16, 200))] * rng.choice((1, 2, 10))
        else:
            other = rng.randrange(len(found) + 1)
            found[at : at + 16] = found[other : other + 16]
    return bytes(found)
