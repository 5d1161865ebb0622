"""What a retrieval pool costs: lookups, and very many texts to fill a large one with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.knowledge.continuations import MAX_DEPTH, draft_trees
from genrec.knowledge.pool import RetrievalPool
from genrec.knowledge.pool_search import continuations
from genrec_builders.knowledge.texts import KnowledgeText

AT_ONCE = (1, 16)  # lookups together


def lookup_ms(pool: RetrievalPool, texts: Sequence[Sequence[int]], at_once: int) -> dict[str, float]:
    """Quantiles of a lookup in `pool` at every tenth token of `texts`, drawn `at_once` together; in ms for each."""
    running = [np.array(text[:size], np.int32) for text in texts for size in range(1, len(text), 10)]
    order = np.random.default_rng(0).permutation(len(running))
    times = []
    for begin in range(0, len(running) - at_once + 1, at_once):
        drawn = [running[at] for at in order[begin : begin + at_once].tolist()]
        began = time.perf_counter()
        found = continuations([pool] * at_once, drawn, np.arange(at_once))
        draft_trees(found, [MAX_DEPTH] * at_once, max_nodes=16, min_share=0.1, discount=0.05)
        times.append(1e3 * (time.perf_counter() - began) / at_once)
    return {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 99)}


def lookup_lines(pool: RetrievalPool, lookups: Mapping[int, Mapping[str, float]]) -> list[str]:
    """A sentence for each number of lookups at once. lookups: what `lookup_ms` says of it."""
    lines = []
    for at_once, times in lookups.items():
        quantiles = ", ".join(f"{name} {value}" for name, value in times.items())
        lines.append(f"Lookup in a pool of {pool.tokens} tokens, {at_once} at once, ms for each: {quantiles}.")
    return lines


def many_texts(tokenizer: Any, written: Sequence[KnowledgeText], count: int) -> list[np.ndarray]:
    """`count` texts, int32 [tokens] each: beginnings of some of `written` with ends of others of their department.

    They are joined between sentences, so that each is a likely text; their sentences are those of `written`.
    """
    ends = np.array([token.endswith(".") for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
    encoded = [np.array(ids, np.int32) for ids in tokenizer([text.text for text in written]).input_ids]
    stops = [ends[ids].nonzero()[0] + 1 for ids in encoded]
    groups: dict[str, list[int]] = {}
    for number, text in enumerate(written):
        groups.setdefault(text.group, []).append(number)
    texts = []
    for begin, end, cut in np.random.default_rng(0).random((count, 3)).tolist():
        one = int(begin * len(written))
        of_group = groups[written[one].group]
        other = of_group[int(end * len(of_group))]
        sentences = int(cut * stops[one].size)
        at = min(sentences, stops[other].size - 1)
        texts.append(np.concatenate([encoded[one][: stops[one][sentences]], encoded[other][stops[other][at] :]]))
    return texts
