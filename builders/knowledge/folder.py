"""Makes knowledge folders: `genrec.knowledge.model.KnowledgeModel` reads them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from builders.dataset import Dataset, split_leave_one_out
from builders.knowledge.language_model import QUICK, LanguageModelConfig, encode_example, train_language_model
from builders.knowledge.texts import KnowledgeText, item_texts, split_texts, user_texts
from builders.train import Progress
from genrec.knowledge.groups import GroupRouter
from genrec.knowledge.model import CHECKPOINT, ITEMS, POOLS, ROUTER, Settings, category_of
from genrec.knowledge.pools import Pools


def build_folder(
    dataset: Dataset,
    path: Path,
    *,
    checkpoint: Path | None = None,
    config: LanguageModelConfig = QUICK,
    harder: bool = False,
    progress: Progress = lambda step, steps, loss: None,
) -> None:
    """Write the knowledge folder of `dataset` to `path`, replacing what is there.

    checkpoint: a causal language model as transformers saves it; its pools start empty. Without one, a small model is
    trained on made-up texts of the demo shop's users and items, and the pools hold the texts that it was trained on.
    Raises ValueError for items that are not the demo shop's, then.
    """
    work = path.with_name(path.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    settings = Settings()
    settings.save(work)
    columns = dataset.items.attributes
    pq.write_table(pa.table({"item_id": dataset.items.item_ids, **columns}), work / ITEMS)
    train = split_leave_one_out(dataset.interactions).train
    tops = [category_of({"category": category}) for category in columns.get("category", [""] * len(dataset.items))]
    router = GroupRouter.fit(np.repeat(train.users, np.diff(train.offsets)), train.rows, tops)
    router.save(work / ROUTER)
    if checkpoint is not None:
        shutil.copytree(checkpoint, work / CHECKPOINT)
        Pools(len(AutoTokenizer.from_pretrained(checkpoint))).save(work / POOLS)
    else:
        users, items = user_texts(dataset, harder=harder), item_texts(dataset, harder=harder)
        texts = [*split_texts(users)[0], *split_texts(items)[0]]
        train_language_model(texts, work / CHECKPOINT, config, progress=progress)
        groups = entity_groups(dataset, router)
        old_texts(work / CHECKPOINT, texts, [groups[text.entity] for text in texts]).save(work / POOLS)
    shutil.rmtree(path, ignore_errors=True)
    work.rename(path)


def entity_groups(dataset: Dataset, router: GroupRouter) -> dict[str, str]:
    """The group of every item, and of every user by the training part of its history."""
    train = split_leave_one_out(dataset.interactions).train
    ids = dataset.interactions.user_ids
    groups = {item: router.item_group(row) for row, item in enumerate(dataset.items.item_ids)}
    return groups | {ids[user]: router.user_group(train[number]) for number, user in enumerate(train.users.tolist())}


def old_texts(checkpoint: Path, texts: Sequence[KnowledgeText], groups: Sequence[str]) -> Pools:
    """Pools that hold `texts`, as a checkpoint's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    pools = Pools(len(tokenizer))
    encoded = [encode_example(tokenizer, text) for text in texts]
    pools.add([example.tokens[example.prompt :] for example in encoded], list(groups))
    return pools
