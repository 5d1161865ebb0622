"""A knowledge folder of long texts, for the protocol of DARE's authors: texts of 300 tokens and more, one at a time.

python -m perf.knowledge.long_texts build/knowledge build/shop build/knowledge-long

A long text is a user's summary with the descriptions of the four newest items of the history: as one might ask a large
model for a summary and the reasons. Around it all is as in `genrec knowledge build`, whose router and items are copied.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from genrec.knowledge.model import CHECKPOINT, ITEMS, POOLS, ROUTER, KnowledgeModel
from genrec.knowledge.pools import Pools
from genrec.knowledge.settings import KnowledgeSettings
from genrec.reporting.progress import track
from genrec_builders.data import Dataset, read_dataset
from genrec_builders.knowledge.folder import training_histories, write_own_texts
from genrec_builders.knowledge.language_model import LanguageModelConfig, train_language_model
from genrec_builders.knowledge.texts import KnowledgeText, item_texts, split_texts, user_texts

_DESCRIBED = 4
_MAX_NEW_TOKENS = 640


def long_texts(dataset: Dataset) -> list[KnowledgeText]:
    """Of every user: the summary, then the newest items' descriptions, newest last."""
    histories, described = training_histories(dataset), {text.entity: text.text for text in item_texts(dataset)}
    return [
        replace(text, text=" ".join([text.text, *(described[item] for item in histories[text.entity][-_DESCRIBED:])]))
        for text in user_texts(dataset)
    ]


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The demo shop that it was built on.")],
    out: Annotated[Path, typer.Argument(help="The new folder; must not be there.")],
    texts: Annotated[int, typer.Option(min=1, help="Texts that the model is trained on.")] = 500,
    own_texts: Annotated[int, typer.Option(min=1, help="Texts that it then writes for the pools.")] = 1000,
) -> None:
    """Train a small model on long texts, and let it write texts of other users into the pools."""
    out.mkdir(parents=True)
    for name in (ROUTER, ITEMS):
        shutil.copy(folder / name, out / name)
    replace(KnowledgeSettings.load(folder), max_new_tokens=_MAX_NEW_TOKENS).save(out)
    dataset = read_dataset(data)
    known = split_texts(long_texts(dataset))[0]
    with track("training on long texts") as task:
        config = LanguageModelConfig(texts=texts)
        train_language_model(
            known, out / CHECKPOINT, config, progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}")
        )
    model = KnowledgeModel(out)
    Pools(len(model.tokenizer)).save(out / POOLS)
    drawn = np.random.default_rng(0).permutation([text.entity for text in known])[:own_texts].tolist()
    with track("writing texts for the pools") as task:
        write_own_texts(model, dataset, drawn, lambda done, total, _: task(done, total, ""))
    model.pools.save(out / POOLS)
    print(json.dumps({"threads": torch.get_num_threads(), "tokens": model.pools.by_group["global"].tokens}))


if __name__ == "__main__":
    typer.run(main)
