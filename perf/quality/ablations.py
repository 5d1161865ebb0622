"""What each part of NEZHA is worth: the same training with one thing changed, all users, in one table.

python -m perf.quality.ablations DATA build/ablations --epochs 6

What helps becomes the default, so it is the validation items that are ranked (`Interactions.without_last`); the test
items, with --test, are for the figures of what was chosen.
A variant that OUT already has a result of is not run again, a run that was cut off goes on; those of the test items
are kept apart, in OUT/test.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Optional

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from genrec.bundle.checkpoint_shapes import HeadShape
from genrec.catalog import Catalog, ItemIndex, PrefixTable, SemanticIdSpace
from genrec.engines.torch import TorchEngine
from genrec.evaluation.metrics import metrics
from genrec.evaluation.ranker import Ranker
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.draft_head import DraftHead, History
from genrec.model.nezha import NezhaModel
from genrec.model.packing import pack_rows
from genrec.pipeline import Pipeline
from genrec.prompt import PromptLayout
from genrec.reporting.kept import flat, require_same
from genrec.reporting.progress import track
from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig
from genrec_builders.data import popularity, read_dataset, sample_users, split_leave_one_out
from genrec_builders.fingerprint import data_fingerprint
from genrec_builders.training.examples import PackedWindows, make_windows
from genrec_builders.training.loop import train
from genrec_builders.training.objective import IGNORED, AutoregressiveObjective, NezhaObjective, Objective, PackedBatch


class IndependentHead(DraftHead):
    """No transitions: every level sees h_0, none sees the codes before it."""

    def _next(self, level: int, code: Tensor, state: Tensor, *rest: object) -> Tensor:
        return state.expand(*code.shape, -1)  # of a first level's children there is one


class HeadWithoutHistoryState(DraftHead):
    """s_1 = 0 instead of h_0."""

    def logits(self, hidden: Tensor, codes: Tensor, history: History | None) -> list[Tensor]:
        return super().logits(_without_first(hidden), codes, history)

    def beam(self, hidden: Tensor, *rest: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().beam(_without_first(hidden), *rest)  # type: ignore[arg-type, return-value]


class PaperHead(DraftHead):
    """The paper's: s_1 = h_0, p_l = softmax(W_l (h_l + s_l)), and an RNN cell or, as `cell`, a GRU cell."""

    def __init__(self, levels: Sequence[int], hidden_size: int, cell: type[nn.RNNCell] | type[nn.GRUCell]) -> None:
        super().__init__(levels, hidden_size, hidden_size, 1)
        self.initial_state = nn.Identity()  # type: ignore[assignment]
        for unused in ("state_projections", "transition_inputs", "transition_states", "transition_outputs"):
            setattr(self, unused, nn.ModuleList())
        self.transition_cells = nn.ModuleList(cell(hidden_size, hidden_size) for _ in self.embeddings)

    def _logits(self, level: int, hidden: Tensor, state: Tensor) -> Tensor:
        return self.projections[level](hidden + state)

    def _moved(self, level: int, state: Tensor) -> list[Tensor]:
        return []

    def _next(self, level: int, code: Tensor, state: Tensor, *rest: object) -> Tensor:
        embedded = self.embeddings[level](code)
        after = self.transition_cells[level](embedded.flatten(0, -2), state.expand_as(embedded).flatten(0, -2))
        return after.view_as(embedded)


class ModelWithoutPlaceholders(NezhaModel):
    """Every level reads the last history token: h_l = h_0. Its prompts end there."""

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, History | None]:
        hidden, _, inputs = self.read_prompts(token_ids, lengths, 1, keep=False)
        return hidden.float().expand(-1, len(self.levels) + 1, -1), self.history(inputs, lengths, 0)


class ObjectiveWithoutPlaceholders(NezhaObjective):
    """The draft head's loss on rows that hold nothing but history."""

    def packed_states(self, batch: PackedBatch, device: torch.device) -> tuple[Tensor, Tensor, History | None]:
        depth = self.layout.space.depth
        hidden, inputs = self.model.causal_states(pack_rows(self.layout, batch.sids).to(device))
        item = self.layout.item_tokens
        last = hidden[:, len(self.layout.opening) + item - 1 :: item]
        states = last[:, :, None].expand(-1, -1, depth + 1, -1)
        return hidden, states, self.packed_history(inputs, batch.sids.shape[1])


class DistilledObjective(NezhaObjective):
    """NEZHA's loss, half of it against the distribution of a trained baseline instead of the true code."""

    def __init__(self, model: NezhaModel, layout: PromptLayout, weight: float, teacher: AutoregressiveModel) -> None:
        super().__init__(model, layout, weight)
        self.teacher = [AutoregressiveObjective(teacher, replace(layout, placeholders=()))]  # not a part of the module
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        self._taught: list[Tensor] = []

    def forward(self, batch: PackedBatch) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            self.teacher[0].eval()
            self._taught = [logits.log_softmax(-1) for logits in self.teacher[0].packed_logits(batch)]
        return super().forward(batch)

    def head_loss(self, states: Tensor, history: History | None, targets: Tensor) -> Tensor:
        counted = targets[..., 0] != IGNORED
        losses = []
        found = self.model.draft_head.logits(states, targets.clamp(min=0), history)
        for each, taught in zip(found, self._taught, strict=True):
            divergence = F.kl_div(each.log_softmax(-1), taught, reduction="none", log_target=True).sum(-1)
            losses.append((divergence * counted).sum() / counted.sum())
        return 0.5 * super().head_loss(states, history, targets) + 0.5 * torch.stack(losses).mean()


def _without_first(hidden: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(hidden[..., :1, :]), hidden[..., 1:, :]], -2)


VARIANTS = (
    "reference",
    "baseline",
    "no transitions",
    "no history reading",
    "no h_0",
    "no placeholders",
    "paper head",
    "GRU cell",
    "wide transitions",
    "narrow transitions",
    "no auxiliary loss",
    "distilled",
)

ABLATION_FORMAT = "1"  # another one when a variant comes to be trained otherwise
log = logging.getLogger(__name__)
WIDTHS = {"narrow transitions": 128, "wide transitions": 512}


class Ablation:
    """One dataset and one recipe, under which variants are trained and ranked."""

    def __init__(
        self,
        data: Path,
        out: Path,
        training: TrainingConfig,
        beam_width: int,
        users: int | None,
        test: bool = False,
        head: HeadShape | None = None,
    ) -> None:
        """users: how many of them are ranked, None for all. test: rank the test items, not the validation items.

        head: of every variant but for what it changes.
        """
        dataset = read_dataset(data)
        if dataset.items.sids is None or dataset.items.levels is None:
            raise ValueError(f"{data}: has no semantic IDs; give a dataset with them")
        self.out = out / "test" if test else out
        self.out.mkdir(parents=True, exist_ok=True)
        self.training, self.beam_width, self.test, self.head = training, beam_width, test, head or HeadShape()
        self.made_of = {"code format": ABLATION_FORMAT, **data_fingerprint(dataset), "test": str(test)}
        self.sids, self.space = dataset.items.sids, SemanticIdSpace(dataset.items.levels)
        self.split = split_leave_one_out(dataset.interactions if test else dataset.interactions.without_last())
        self.catalog = Catalog.build(dataset.items.item_ids, self.sids, popularity(self.split, len(dataset.items)))
        self.index = ItemIndex.build(self.space, self.catalog)
        self.masks = PrefixTable.of(self.space, self.catalog)
        self.layout = PromptLayout.contiguous(self.space, BuildConfig().max_history)
        self.histories, self.targets = sample_users(self.split.test, users)

    def run(self, variant: str) -> dict:
        """Train and rank one variant; its result is kept in the folder and used again.

        Raises ValueError if the folder holds a result, or a state, of other data or settings.
        """
        path = self.out / f"{variant.replace(' ', '-')}.json"
        training = replace(self.training, auxiliary_weight=0.0) if variant == "no auxiliary loss" else self.training
        if path.exists():
            result = json.loads(path.read_text())
            ours = {"training": asdict(training), "beam_width": self.beam_width, "users": len(self.targets)}
            ours["head"] = asdict(self.head)
            for name, value in ours.items():
                if result.get(name) != value:
                    raise ValueError(f"{path} has {name} {result.get(name)}, asked for is {value}; use another folder")
            if "made_of" in result:
                require_same(path, result["made_of"], self.made_of, "remove it to train anew, or use another folder")
            else:
                log.warning("%s: it was not noted what data it is of; it is used as it is", path)
            return result
        objective = self._objective(variant, training)
        train_split = self.split.train
        windows = make_windows(train_split.offsets, train_split.rows, self.layout.max_history)
        with track(variant) as task:
            curves = train(
                objective,
                [PackedWindows(windows, self.sids, objective.layout)],
                training,
                state_path=path.with_suffix(".pt"),
                progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}"),
                made_of={**self.made_of, **flat(asdict(self.head)), "variant": variant},
            )
        objective.model.save_checkpoint(path.with_suffix(""))
        engine = TorchEngine(objective.model, self.masks, self.beam_width)
        pipeline = Pipeline(self.catalog, self.index, objective.layout, engine)
        ranking = Ranker(pipeline, batch=64).rank(self.histories)
        result = {
            "variant": variant,
            "parameters": sum(parameter.numel() for parameter in objective.model.parameters()),
            "users": len(self.targets),
            "beam_width": self.beam_width,
            "head": asdict(self.head),
            "ranked": "test" if self.test else "validation",
            "training": asdict(training),
            "made_of": self.made_of,
            "curves": asdict(curves),
            **metrics(ranking.rows, self.targets),
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".pt").unlink()
        return result

    def _objective(self, variant: str, training: TrainingConfig) -> Objective:
        layout, weight = self.layout, training.auxiliary_weight
        teacher = None
        if variant == "distilled":
            self.run("baseline")
            teacher = AutoregressiveModel.load_checkpoint(self.out / "baseline")
        torch.manual_seed(training.seed)
        shape = BackboneShape()
        config = shape.config(layout)
        bare = replace(layout, placeholders=())
        if variant == "baseline":
            return AutoregressiveObjective(AutoregressiveModel(config, layout.sid_tokens), bare)
        size = replace(self.head, transition_size=WIDTHS.get(variant, self.head.transition_size))
        if variant in ("no transitions", "no history reading"):
            size = replace(size, attention_heads=0)
        if variant == "no placeholders":
            return ObjectiveWithoutPlaceholders(
                ModelWithoutPlaceholders(config, self.space.levels, **asdict(size)), bare, weight
            )
        model = NezhaModel(config, self.space.levels, **asdict(size))
        heads: dict[str, Callable[[], DraftHead]] = {
            "no transitions": lambda: IndependentHead(self.space.levels, shape.hidden_size, **asdict(size)),
            "no h_0": lambda: HeadWithoutHistoryState(self.space.levels, shape.hidden_size, **asdict(size)),
            "paper head": lambda: PaperHead(self.space.levels, shape.hidden_size, nn.RNNCell),
            "GRU cell": lambda: PaperHead(self.space.levels, shape.hidden_size, nn.GRUCell),
        }
        if variant in heads:
            model.draft_head = heads[variant]()
        if teacher is not None:
            return DistilledObjective(model, layout, weight, teacher)
        return NezhaObjective(model, layout, weight)


def main(
    data: Annotated[Path, typer.Argument(help="A dataset folder with semantic IDs.")],
    out: Annotated[Path, typer.Argument(help="Where results are kept between calls.")],
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    beam_width: Annotated[int, typer.Option(min=1)] = 20,
    users: Annotated[Optional[int], typer.Option(help="Users to rank; all by default.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Rank the test items, not the validation items.")] = False,
    learning_rate: Annotated[float, typer.Option(min=1e-7)] = TrainingConfig.learning_rate,
    dropout: Annotated[float, typer.Option(min=0, max=0.9, help="In the backbone.")] = TrainingConfig.dropout,
    head_dropout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Within the draft head.")
    ] = TrainingConfig.head_dropout,
    auxiliary_weight: Annotated[float, typer.Option(min=0)] = TrainingConfig.auxiliary_weight,
    attention_heads: Annotated[
        int, typer.Option(min=0, help="With which the transitions read the history.")
    ] = HeadShape.attention_heads,
    variants: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(VARIANTS),
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train every variant with one recipe and print what each is worth."""
    chosen = variants.split(",")
    for variant in chosen:
        if variant not in VARIANTS:
            raise typer.BadParameter(f"variant {variant!r} is unknown; use some of {', '.join(VARIANTS)}")
    training = TrainingConfig(
        epochs=epochs,
        learning_rate=learning_rate,
        dropout=dropout,
        head_dropout=head_dropout,
        auxiliary_weight=auxiliary_weight,
        seed=seed,
    )
    head = HeadShape(attention_heads=attention_heads)
    ablation = Ablation(data, out, training, beam_width, users, test, head)
    results = [ablation.run(variant) for variant in chosen]
    table = Table("variant", "parameters", "minutes", "Hit@10", "NDCG@10", "last loss")
    for result in results:
        table.add_row(
            result["variant"],
            f"{result['parameters']:,}",
            f"{result['curves']['seconds'] / 60:.1f}",
            f"{result['hit@10']:.4f}",
            f"{result['ndcg@10']:.4f}",
            f"{result['curves']['losses'][-1]:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
