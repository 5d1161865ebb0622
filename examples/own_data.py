"""Makes a bundle of your own tables and recommends from it, in about half a minute.

    python examples/own_data.py WORK

WORK/data then holds the two tables in the form that `genrec build` reads, and WORK/bundle what serves them. The tables
here are random: put yours in their place.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.pipeline import Pipeline
from genrec.reporting.progress import track
from genrec_builders.build import build_bundle
from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig
from genrec_builders.data import read_dataset

ITEMS, USERS, EACH = 300, 300, 12
work = Path(sys.argv[1])
(work / "data").mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(0)

# One row per item. `embedding` is any vector of the item's content, from which semantic IDs are made; every other
# column is for people. Items that have semantic IDs already bring a column `sid` instead.
item_ids = [f"item-{number:04}" for number in range(ITEMS)]
items = {"item_id": item_ids, "embedding": list(rng.normal(size=(ITEMS, 16)).astype(np.float32)), "title": item_ids}
pq.write_table(pa.table(items), work / "data" / "items.parquet")

# One row per interaction. Here everybody walks through the catalogue, so that there is something to learn.
starts = rng.integers(0, ITEMS, USERS)
interactions = {
    "user_id": np.repeat([f"user-{number}" for number in range(USERS)], EACH),
    "item_id": [item_ids[(start + step) % ITEMS] for start in starts for step in range(EACH)],
    "timestamp": np.tile(np.arange(EACH), USERS),
}
pq.write_table(pa.table(interactions), work / "data" / "interactions.parquet")

config = BuildConfig(
    levels=(16, 16, 16),  # codes per level of the semantic IDs: 128 or 256 each for a real catalogue
    beam_width=100,  # at least twice the most items that a request may ask for
    shape=BackboneShape(hidden_size=64, intermediate_size=192, layers=2),
    training=TrainingConfig(epochs=8, learning_rate=5e-3),
)
manifest = build_bundle(read_dataset(work / "data"), work / "bundle", config, track)
assert manifest is not None
print("Hit@10", manifest.training["quality"]["history_excluded"]["hit@10"])

answer = Pipeline.open(work / "bundle").recommend([item_ids[40:52]], top_k=5)[0]
print("after item-0051:", ", ".join(answer.item_ids))
