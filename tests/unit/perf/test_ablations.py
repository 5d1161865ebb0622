"""The variants of `perf.quality.ablations`: each drafts what it was trained for, and a run can be taken up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec.engines.torch import TorchEngine
from genrec.model.draft_head import History
from genrec.model.nezha import NezhaModel
from genrec_builders.config import TrainingConfig
from genrec_builders.data import Dataset, write_dataset
from genrec_builders.training.objective import NezhaObjective, PackedBatch
from perf.quality.ablations import VARIANTS, Ablation

TRAINING = TrainingConfig(epochs=1, dropout=0.0)


@pytest.fixture(scope="module")
def data(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small shop with semantic IDs of three levels that are random."""
    folder = tmp_path_factory.mktemp("ablations")
    sids = np.random.default_rng(0).integers(0, (7, 8, 9), (len(dataset.items), 3)).astype(np.int32)
    items = replace(dataset.items, sids=sids, levels=(7, 8, 9), embeddings=None)
    write_dataset(replace(dataset, items=items), folder)
    return folder


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("baseline", "distilled")])
def test_a_draft_is_scored_as_it_was_trained(data: Path, tmp_path: Path, variant: str) -> None:
    ablation = Ablation(data, tmp_path, TRAINING, beam_width=20, users=4)
    objective = ablation._objective(variant, TRAINING)
    model, layout = objective.model.eval(), objective.layout
    assert isinstance(objective, NezhaObjective) and isinstance(model, NezhaModel)
    if model.draft_head.attention_heads:
        for weight in model.draft_head.transition_mixes.parameters():  # zero at first: history would not matter
            torch.nn.init.normal_(weight)
    history = ablation.split.train[0][:6]
    drafts = TorchEngine(model, ablation.index.prefixes, 20).draft([layout.encode(ablation.sids[history])])
    best = ablation.space.decode(drafts.codes[0, :1])

    row = np.concatenate([ablation.sids[history], best])[None]
    batch = PackedBatch(row, np.ones((1, row.shape[1] - 1), bool))
    with torch.no_grad():
        _, states, packed = objective.packed_states(batch, torch.device("cpu"))
        history = packed and History(packed.states, packed.seen[:, -1:])
        logits = model.draft_head.logits(states[:, -1:], torch.from_numpy(best[None].astype(np.int64)), history)
    score = sum(float(each[0, 0].log_softmax(-1)[code]) for each, code in zip(logits, best[0], strict=True))
    assert score == pytest.approx(float(drafts.scores[0, 0]), abs=1e-4)


def test_variants_are_trained_once_and_never_on_what_is_ranked(data: Path, tmp_path: Path, dataset: Dataset) -> None:
    ablation = Ablation(data, tmp_path, TRAINING, beam_width=20, users=20)
    results = {name: ablation.run(name) for name in ("reference", "no transitions", "distilled")}
    assert (tmp_path / "baseline.json").exists()  # the teacher
    assert all(0 <= result["ndcg@10"] <= result["hit@10"] <= 1 for result in results.values())
    assert ablation.run("reference") == results["reference"]  # from its file
    with pytest.raises(ValueError, match="use another folder"):
        Ablation(data, tmp_path, replace(TRAINING, dropout=0.2), beam_width=20, users=20).run("reference")

    # Neither the test items nor the ones that are ranked here, nor the ones before those, are trained on.
    sizes = np.diff(dataset.interactions.offsets)
    assert sizes.min() >= 4 and np.array_equal(np.diff(ablation.split.train.offsets), sizes - 3)
    tested = Ablation(data, tmp_path, TRAINING, beam_width=20, users=20, test=True).split
    assert np.array_equal(np.diff(tested.train.offsets), sizes - 2)
