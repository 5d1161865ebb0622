"""How much of a returning user's prompt a KV cache still holds, by the block in which old items are dropped.

python -m perf.speed.prefix_reuse DATA, a folder as `genrec build` reads it. Counts tokens; runs no model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from genrec.catalog import SemanticIdSpace
from genrec.prompt import PromptLayout
from genrec_builders.data import read_dataset


@dataclass
class Reuse:
    """Totals over visits: prompt tokens, those that were cached, and visits whose h_0 .. h_L were (partly) cached."""

    visits: int = 0
    tokens: int = 0
    cached: int = 0
    hidden: int = 0

    def count(self, tokens: int, cached: int, needed: int) -> None:
        self.visits += 1
        self.tokens += tokens
        self.cached += cached
        self.hidden += tokens - cached < needed

    @property
    def rate(self) -> float:
        return self.cached / max(1, self.tokens)


class PrefixCache:
    """Every block of every earlier prompt: matching is of whole blocks, and never of a prompt's last token.

    As TensorRT-LLM's, but nothing is ever evicted: the rates are upper bounds. block: tokens of one.
    """

    def __init__(self, block: int) -> None:
        self.block = block
        self._known: set[int] = set()

    def match(self, prompt: np.ndarray) -> int:
        """Cached tokens of `prompt` (int32 [P]), which is cached itself from now on."""
        found, matching, key = 0, True, 0
        for end in range(self.block, prompt.size + 1, self.block):
            key = hash((key, prompt[end - self.block : end].tobytes()))
            matching = matching and end < prompt.size and key in self._known
            found += self.block * matching
            self._known.add(key)
        return found


def replay(
    histories: list[np.ndarray], sids: np.ndarray, layout: PromptLayout, block: int, repeats: int
) -> tuple[Reuse, Reuse]:
    """Every user visits after each of their interactions: totals of all visits, and of those with dropped items.

    histories: int32 rows each, oldest first. sids: int32 [n, L], of the rows. repeats: times that a visit is repeated
    with no new item.
    """
    cache, all_visits, dropping = PrefixCache(block), Reuse(), Reuse()
    needed = layout.space.depth + 1
    for history in histories:
        for size in range(1, history.size + 1):
            prompt = layout.encode(sids[history[:size]])
            for _ in range(1 + repeats):
                cached = cache.match(prompt)
                all_visits.count(prompt.size, cached, needed)
                if size > layout.max_history:
                    dropping.count(prompt.size, cached, needed)
    return all_visits, dropping


def main(
    data: Annotated[Path, typer.Argument(help="A dataset with semantic IDs.")],
    max_history: Annotated[str, typer.Option(help="Longest histories to try.")] = "20,50",
    drop_blocks: Annotated[str, typer.Option(help="Blocks of dropped items to try.")] = "1,5,10",
    tokens_per_block: Annotated[str, typer.Option(help="Blocks of the KV cache to try.")] = "16,32",
    repeats: Annotated[int, typer.Option(min=0, help="Visits without a new item, after each with one.")] = 0,
) -> None:
    """Print the share of prompt tokens that earlier prompts left in an unlimited cache, as visits come one by one."""
    dataset = read_dataset(data)
    assert dataset.items.sids is not None and dataset.items.levels is not None, "the items have no semantic IDs"
    sids, interactions = dataset.items.sids, dataset.interactions
    histories = [
        interactions.rows[start:end]
        for start, end in zip(interactions.offsets[:-1].tolist(), interactions.offsets[1:].tolist(), strict=True)
    ]
    base = PromptLayout.contiguous(SemanticIdSpace(dataset.items.levels), max_history=1)
    table = Table(title=f"{len(histories):,} users, {len(interactions.rows):,} interactions, {repeats} repeats")
    for name in (
        "max history", "drop block", "cache block", "visits", "tokens a visit", "cached", "short",
        "dropping visits", "tokens a visit", "cached", "short",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for longest in numbers(max_history):
        for drop in numbers(drop_blocks):
            layout = replace(base, max_history=longest, drop_block=drop)
            for block in numbers(tokens_per_block):
                totals = replay(histories, sids, layout, block, repeats)
                cells = [f"{longest}", f"{drop}", f"{block}"]
                for total in totals:
                    each = total.tokens / max(1, total.visits)
                    short = total.hidden / max(1, total.visits)
                    cells += [f"{total.visits:,}", f"{each:.1f}", f"{total.rate:.1%}", f"{short:.1%}"]
                table.add_row(*cells)
    Console(width=150).print(table)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
