"""Makes knowledge folders: `genrec.knowledge.model.KnowledgeModel` reads them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from genrec.bundle import sha256_of
from genrec.knowledge.decoder import GREEDY
from genrec.knowledge.groups import GroupRouter
from genrec.knowledge.model import (
    CHECKPOINT,
    ITEMS,
    POOLS,
    ROUTER,
    KnowledgeModel,
    category_of,
)
from genrec.knowledge.offline import add_texts, locked, read_texts
from genrec.knowledge.pools import Pools
from genrec.knowledge.settings import SETTINGS, KnowledgeSettings
from genrec.reporting.kept import Fingerprint, flat, require_same
from genrec.reporting.outputs import Output, replaced, require_replaceable
from genrec_builders.data import Dataset, split_leave_one_out
from genrec_builders.fingerprint import KNOWLEDGE_FORMAT, checkpoint_fingerprint, data_fingerprint
from genrec_builders.knowledge.language_model import LanguageModelConfig, train_language_model
from genrec_builders.knowledge.texts import item_texts, split_texts, user_texts
from genrec_builders.training.checkpoint_facts import require_language_model
from genrec_builders.training.loop import Progress

MADE_OF = "made_of.json"
# The model's folder has the names that its checkpoint had.
KNOWLEDGE = Output.of_patterns(
    "a knowledge folder",
    [SETTINGS],
    [ITEMS, MADE_OF, f"{ROUTER}*", f"{POOLS}/pools.json*", f"{POOLS}/[0-9]*.npz*", f"{CHECKPOINT}/*"],
)
log = logging.getLogger(__name__)


def build_folder(
    dataset: Dataset,
    path: Path,
    *,
    checkpoint: Path | None = None,
    config: LanguageModelConfig | None = None,
    harder: bool = False,
    own_texts: int = 1000,
    progress: Progress = lambda step, steps, loss: None,
) -> None:
    """Write the knowledge folder of `dataset` to `path`; one that is there is replaced when the new one is whole.

    Raises, before any work, ValueError or OSError for a `path` that holds anything else, or is, holds or lies in the
    checkpoint, and for a checkpoint that `require_language_model` refuses.

    checkpoint: a causal language model as transformers saves it. Without one, a small model is trained on made-up texts
    of the demo shop's users and items; ValueError for items that are not its, then. own_texts: of entities drawn from
    those that it was trained on, or from all, are written by the model for the pools to start with: a model's own texts
    draft it best.
    """
    require_replaceable(path, KNOWLEDGE, [checkpoint])
    if checkpoint is not None:
        require_language_model(checkpoint)
    made_of = knowledge_fingerprint(dataset, checkpoint, config or LanguageModelConfig(), harder, own_texts)
    with replaced(path, KNOWLEDGE) as work:
        (work / MADE_OF).write_text(json.dumps(made_of, indent=1) + "\n")
        _write(dataset, work, checkpoint, config or LanguageModelConfig(), harder, own_texts, progress)


def knowledge_fingerprint(
    dataset: Dataset,
    checkpoint: Path | None = None,
    config: LanguageModelConfig | None = None,
    harder: bool = False,
    own_texts: int = 1000,
) -> Fingerprint:
    """What `build_folder` with the same arguments makes a folder of."""
    trained = flat(asdict(config or LanguageModelConfig())) | {"harder": str(harder)}
    return {
        "code format": KNOWLEDGE_FORMAT,
        **data_fingerprint(dataset),
        "checkpoint": "none" if checkpoint is None else checkpoint_fingerprint(checkpoint),
        "own texts": str(own_texts),
        **({} if checkpoint is not None else trained),
    }


def is_built(folder: Path, made_of: Fingerprint) -> bool:
    """Whether `folder` is a knowledge folder of `made_of`; False if nothing is there.

    Raises ValueError if it is another one. One of before this was noted is taken, with a warning.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    KnowledgeSettings.load(folder)
    try:
        kept = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
    except FileNotFoundError:
        log.warning("%s: was made by an older genrec, which did not note of what; it is used as it is", folder)
        return True
    require_same(folder, kept, made_of, f"remove {folder} to make it anew, or name another folder")
    return True


def _write(
    dataset: Dataset,
    work: Path,
    checkpoint: Path | None,
    config: LanguageModelConfig,
    harder: bool,
    own_texts: int,
    progress: Progress,
) -> None:
    settings = KnowledgeSettings()
    settings.save(work)
    columns = dataset.items.attributes
    pq.write_table(pa.table({"item_id": dataset.items.item_ids, **columns}), work / ITEMS)
    train = split_leave_one_out(dataset.interactions).train
    tops = [category_of({"category": category}) for category in columns.get("category", [""] * len(dataset.items))]
    router = GroupRouter.fit(np.repeat(train.users, np.diff(train.offsets)), train.rows, tops)
    router.save(work / ROUTER)
    if checkpoint is not None:
        shutil.copytree(checkpoint, work / CHECKPOINT)
        entities = [*dataset.items.item_ids, *dataset.interactions.user_ids]
    else:
        users, items = user_texts(dataset, harder=harder), item_texts(dataset, harder=harder)
        texts = [*split_texts(users)[0], *split_texts(items)[0]]
        train_language_model(texts, work / CHECKPOINT, config, progress=progress)
        entities = [text.entity for text in texts]
    Pools(len(AutoTokenizer.from_pretrained(work / CHECKPOINT))).save(work / POOLS)
    model = KnowledgeModel(work)
    write_own_texts(model, dataset, np.random.default_rng(0).permutation(entities)[:own_texts].tolist(), progress)
    model.pools.save(work / POOLS)


def write_own_texts(model: KnowledgeModel, dataset: Dataset, entities: Sequence[str], progress: Progress) -> None:
    """Write the texts of `entities` greedily, and add them to the model's pools as they finish."""
    histories = training_histories(dataset)
    decoder = model.decoder(GREEDY, batch_size=16, grow=True)
    requests = (
        model.user_request(histories[entity]) if entity in histories else model.item_request(entity)
        for entity in entities
    )
    for done, _ in enumerate(decoder.generate(requests), 1):
        progress(done, len(entities), 0.0)


def grow_pools(folder: Path, outputs: Sequence[Path]) -> int:
    """Add the texts in `outputs`, of `genrec.knowledge.offline`, to the pools of a knowledge folder; how many.

    A file that was added before is left out, so that a command that was killed can be repeated: the folder holds either
    the old pools or the new ones. Not for while texts are being written with the folder: runs that are interrupted do
    not go on with a folder that has changed.

    Raises ValueError for a file that cannot be read or has other tokens than the folder's model, and if another
    process grows the same pools; nothing is added then.
    """
    KnowledgeSettings.load(folder)
    path = folder / POOLS
    with locked(path, f"{path}: another process is adding texts; wait until it has ended"):
        pools, added = Pools.load(path), 0
        for output in outputs:
            if (name := f"sha256 {sha256_of(output)}") in pools.sources:
                continue
            texts, _ = read_texts(output)
            try:
                add_texts(pools, texts)
            except ValueError as error:
                raise ValueError(f"{output}: {error}") from error
            pools.sources.append(name)
            added += len(texts)
        if added:
            pools.save(path)
    return added


def training_histories(dataset: Dataset) -> dict[str, list[str]]:
    """Item ids of every user's training part, oldest first: what comes later is for a model to be tested with."""
    train = split_leave_one_out(dataset.interactions).train
    ids, items = dataset.interactions.user_ids, dataset.items.item_ids
    return {
        ids[user]: [items[row] for row in train[number].tolist()] for number, user in enumerate(train.users.tolist())
    }
