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
from genrec_builders.data.demo_shop import make_demo_shop
from genrec_builders.training.objective import NezhaObjective, PackedBatch
from perf.quality.ablations import VARIANTS, Ablation

TRAINING = TrainingConfig(epochs=1, dropout=0.0)
USERS = 20


@pytest.fixture(scope="module")
def shop() -> Dataset:
    """A shop with semantic IDs of three levels that are random: an item of its own for each of 120."""
    made = make_demo_shop(n_items=120, n_users=80, seed=0)
    codes = np.random.default_rng(0).permutation(7 * 8 * 9)[:120]
    sids = np.stack(np.unravel_index(codes, (7, 8, 9)), 1).astype(np.int32)
    return replace(made, items=replace(made.items, sids=sids, levels=(7, 8, 9), embeddings=None))


@pytest.fixture(scope="module")
def data(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablations")
    write_dataset(shop, folder)
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
    drafts = TorchEngine(model, ablation.masks, 20).draft([layout.encode(ablation.sids[history])])
    best = ablation.space.decode(drafts.codes[0, :1])

    row = np.concatenate([ablation.sids[history], best])[None]
    batch = PackedBatch(row, np.ones((1, row.shape[1] - 1), bool))
    with torch.no_grad():
        _, states, packed = objective.packed_states(batch, torch.device("cpu"))
        history = packed and History(packed.states, packed.seen[:, -1:])
        logits = model.draft_head.logits(states[:, -1:], torch.from_numpy(best[None].astype(np.int64)), history)
    score = sum(float(each[0, 0].log_softmax(-1)[code]) for each, code in zip(logits, best[0], strict=True))
    assert score == pytest.approx(float(drafts.scores[0, 0]), abs=1e-4)


@pytest.mark.training
def test_variants_are_trained_once_and_ranked_by_what_they_learnt(data: Path, tmp_path: Path) -> None:
    ablation = Ablation(data, tmp_path, TRAINING, beam_width=20, users=USERS)
    results = {name: ablation.run(name) for name in ("reference", "no history reading", "distilled")}
    assert (tmp_path / "baseline.json").exists()  # the teacher
    assert results["reference"]["parameters"] == results["distilled"]["parameters"]
    assert results["reference"]["parameters"] > results["no history reading"]["parameters"]
    assert len({result["curves"]["losses"][0] for result in results.values()}) == 3
    for name, result in results.items():
        model = NezhaModel.load_checkpoint(tmp_path / name.replace(" ", "-"))
        prompts = [ablation.layout.encode_history(history, ablation.sids) for history in ablation.histories]
        drafts = TorchEngine(model, ablation.masks, 20).draft(prompts)
        # Every item has a semantic ID of its own, and those of the history are not left out.
        hits = (drafts.codes[:, :10] == ablation.space.encode(ablation.sids[ablation.targets])[:, None]).any(1)
        assert result["hit@10"] == pytest.approx(hits.mean(), abs=1.01 / USERS)  # a near tie may cut another one off
    assert ablation.run("reference") == results["reference"]  # from its file
    with pytest.raises(ValueError, match="use another folder"):
        Ablation(data, tmp_path, replace(TRAINING, dropout=0.2), beam_width=20, users=USERS).run("reference")


def test_what_is_ranked_is_never_trained_on(data: Path, tmp_path: Path, shop: Dataset) -> None:
    """Neither the test items nor the ones that are ranked here, nor the ones before those."""
    sizes, rows = np.diff(shop.interactions.offsets), shop.interactions.rows
    assert sizes.min() >= 4
    for test, back in ((False, 2), (True, 1)):
        ablation = Ablation(data, tmp_path, TRAINING, beam_width=20, users=None, test=test)
        assert np.array_equal(np.diff(ablation.split.train.offsets), sizes - back - 1)
        assert np.array_equal(ablation.targets, rows[shop.interactions.offsets[1:] - back])
