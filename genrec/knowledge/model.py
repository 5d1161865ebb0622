"""A knowledge model: one folder with all that writes the texts of a catalogue's users and items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from genrec.errors import InvalidRequest, in_words
from genrec.knowledge.decoder import SpeculativeDecoder
from genrec.knowledge.detokenizer import UNFINISHED
from genrec.knowledge.drafter import Drafter, PoolDrafter
from genrec.knowledge.groups import GroupRouter
from genrec.knowledge.pools import Pools
from genrec.knowledge.prompt import item_prompt, user_prompt
from genrec.knowledge.settings import KnowledgeSettings
from genrec.knowledge.texts import GREEDY, TextRequest, Verification
from genrec.reporting.machine import usable_cores

CHECKPOINT, ITEMS, ROUTER, POOLS = "model", "items.parquet", "router.npz", "pools"
# Relaxed verification as published: arXiv 2408.05676, section 3.3.
RELAXED = Verification(top_k=2, threshold=0.1)
VERIFICATIONS = {"greedy": GREEDY, "relaxed": RELAXED}
NO_DRAFTS = "none"  # what a deployment says in place of a verification


class KnowledgeModel:
    """What is in a knowledge folder, read as it is needed.

    folder: knowledge.json, model/ (a causal language model as transformers saves it), items.parquet (item_id and the
    columns of attributes), router.npz and pools/. Raises ValueError that names the file at fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = KnowledgeSettings.load(folder)
        self.router = GroupRouter.load(folder / ROUTER)
        self.attributes, self._row = _read_items(folder / ITEMS)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / CHECKPOINT)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder / CHECKPOINT}: no tokenizer can be read: {in_words(error)}") from error

    @cached_property
    def language_model(self) -> Any:
        """The checkpoint, on the GPU in bfloat16 if there is one, otherwise in float32."""
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                self.folder / CHECKPOINT, dtype=dtype, output_loading_info=True
            )
            if missing := sorted(info["missing_keys"]):  # transformers makes them up at random
                raise ValueError(f"tensor {missing[0]} is missing")
            return model.to(device)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.folder / CHECKPOINT}: no model can be read: {in_words(error)}") from error

    @cached_property
    def pools(self) -> Pools:
        return Pools.load(self.folder / POOLS)

    def decoder(self, verification: Verification, batch_size: int, **options: Any) -> SpeculativeDecoder:
        """A decoder that drafts from the pools, unless `options` name another `drafter`.

        PyTorch gets no more threads than a container has processors: it does not know of quotas.
        """
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        drafter: Drafter | None = options.pop("drafter") if "drafter" in options else PoolDrafter(self.pools)
        return SpeculativeDecoder(
            self.language_model,
            drafter,
            verification=verification,
            stop_tokens=[self.tokenizer.eos_token_id],
            batch_size=batch_size,
            **options,
        )

    def served(self, verification: str, texts_at_once: int) -> SpeculativeDecoder:
        """The decoder of a deployment that says so: a name of `VERIFICATIONS`, or `NO_DRAFTS`."""
        if verification == NO_DRAFTS:
            return self.decoder(GREEDY, texts_at_once, drafter=None)
        return self.decoder(VERIFICATIONS[verification], texts_at_once, grow=True)

    def request(
        self, history: Sequence[bytes] | None, item: bytes | None, max_new_tokens: int | None = None
    ) -> TextRequest:
        """For the text of a user with `history`, or of `item`: ids in UTF-8, one of the two. Raises InvalidRequest."""
        if (history is None) == (item is None):
            given = "neither" if item is None else "both"
            raise InvalidRequest(f"history and item: {given} was sent; send history for a user, or item for an item")
        if item is not None:
            return self.item_request(_decoded("item", item), max_new_tokens=max_new_tokens)
        assert history is not None
        if len(history) > (most := self.settings.limits.history):
            raise InvalidRequest(f"history has {len(history)} items; at most {most} are accepted, send the newest")
        return self.user_request([_decoded("history", each) for each in history], max_new_tokens)

    def user_request(self, history: Sequence[str], max_new_tokens: int | None = None) -> TextRequest:
        """For a user's text. history: item ids, oldest first; unknown ones are skipped. Raises InvalidRequest."""
        rows = [self._row[item] for item in history if item in self._row]
        if history and not rows:
            raise InvalidRequest(
                f"history has {len(history)} items, such as {history[-1]!r}, and none is in the catalogue of "
                f"{len(self._row)}; send ids of items.parquet"
            )
        prompt = user_prompt([self.attributes[row] for row in rows], self.settings.limits)
        return self._request(prompt, self.router.user_group(np.array(rows)), max_new_tokens)

    def item_request(
        self, item: str, attributes: Mapping[str, str] | None = None, max_new_tokens: int | None = None
    ) -> TextRequest:
        """For an item's text; with `attributes` also of one that is not in the catalogue. Raises InvalidRequest."""
        row = self._row.get(item)
        if attributes is None:
            if row is None:
                raise InvalidRequest(
                    f"item {item!r} is not in the catalogue of {len(self._row)}; send an id of items.parquet"
                )
            attributes = self.attributes[row]
        group = self.router.item_group(row, category_of(attributes))
        return self._request(item_prompt(attributes, self.settings.limits), group, max_new_tokens)

    def decode(self, tokens: np.ndarray) -> str:
        """The characters of tokens, int [n], with U+FFFD for bytes that are no whole character."""
        # Tidying up would change what the pieces before have shown.
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def text(self, tokens: np.ndarray) -> str:
        """The text of tokens, int [n]; a character whose last bytes are not written yet is left out."""
        return self.decode(tokens).rstrip(UNFINISHED)

    def _request(self, prompt: str, group: str, max_new_tokens: int | None) -> TextRequest:
        # A title that reads like a special token stays a title.
        tokens = np.array(self.tokenizer(prompt, split_special_tokens=True).input_ids, np.int32)
        most = self.settings.max_new_tokens
        wanted = most if max_new_tokens is None else max_new_tokens
        if not 1 <= wanted <= most:
            raise InvalidRequest(f"max_new_tokens is {wanted}; it must be 1 to {most}")
        return TextRequest(tokens, group, wanted)


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} holds {value[:64]!r}, which is not UTF-8: {error.reason}; send text") from None


def category_of(attributes: Mapping[str, str]) -> str:
    """The top of an item's category path ("Camping > Tents" -> "Camping"), "" without one."""
    return attributes.get("category", "").partition(">")[0].strip()


def _read_items(path: Path) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Attributes per row, and the row of each item id."""
    try:
        table = pq.read_table(path)
        columns = {name: table[name].cast(pa.string()).fill_null("").to_pylist() for name in table.column_names}
        ids = columns.pop("item_id")
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as a table with item_id and attributes: {in_words(error)}") from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)], {
        item: row for row, item in enumerate(ids)
    }
