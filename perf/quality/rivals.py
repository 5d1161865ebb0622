"""What a user would use instead of NEZHA: popularity, item-kNN, item vectors and SASRec with full cross-entropy.

The protocol is that of `genrec compare`: leave-one-out, every test user, the last items of a history, the whole
catalogue, history excluded and not. `genrec compare-report` joins the folder with those of bundles. Whatever a rival
chooses, an epoch or a setting, it chooses by NDCG@10 of validation users, as `genrec build --validation-users` does.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from genrec.cli.arguments import one_of
from genrec.evaluation.comparison import described, opened
from genrec.evaluation.metrics import metrics
from genrec.evaluation.report import write_report
from genrec.evaluation.results import COMPARISON, Trained, this_run
from genrec.evaluation.scored import Scorer, add_scored, rank_scored
from genrec.reporting.kept import flat, require_same
from genrec.reporting.outputs import require_output
from genrec.reporting.progress import Task, track
from genrec_builders.config import BuildConfig
from genrec_builders.data import popularity, read_dataset, sample_users, split_leave_one_out, user_sample
from genrec_builders.item_vectors import VectorTraining, learn_vectors
from genrec_builders.training.examples import make_windows
from perf.quality.without_model import Affinity, Popularity, tuned_item_knn, tuned_votes_alone

POPULARITY, ITEM_KNN, ITEM_VECTORS, VOTES_ALONE, SASREC = RIVALS = (
    "popularity",
    "item-knn",
    "item-vectors",
    "votes-alone",
    "sasrec",
)
BATCH = 256


class Rivals:
    """One dataset, and the folder in which its rivals' rankings are kept."""

    def __init__(self, data: Path, out: Path, validation_users: int = 4000, seed: int = 0) -> None:
        """seed: of item vectors."""
        require_output(out, COMPARISON, [data])
        dataset = read_dataset(data)
        self.out, self.items = out, len(dataset.items)
        self.max_history = BuildConfig().max_history
        self.split = split_leave_one_out(dataset.interactions)
        self.users = user_sample(data.resolve().name, dataset, None)
        self.histories, self.targets = sample_users(self.split.validation, validation_users)
        self.training = VectorTraining(seed=seed)
        self._affinity: Affinity | None = None
        self.results = opened(out, described(self.users, np.ones(self.items, bool)), "scores")

    def validate(self, score: Scorer) -> float:
        """NDCG@10 of the validation users, history not excluded."""
        ((rows, _),) = rank_scored(score, self.histories, batch=BATCH)
        return metrics(rows, self.targets)["ndcg@10"]

    def add(
        self,
        name: str,
        train: Callable[[Task], tuple[Scorer, list[np.ndarray], dict[str, Any], dict[str, Any] | None]],
        asked: dict[str, Any] | None = None,
    ) -> None:
        """Train and rank a rival, unless the folder has it.

        train: gives the model, the arrays that it consists of, its settings and its curves. asked: settings, for a
        rival that can have several; another rival of the same name and settings is not trained. Raises ValueError if
        the folder has one of the same name that differs in more than its seed: their ranks would be pooled.
        """
        kept = [each for each in self.results.record.models if each.model == name]
        if any(asked is None or each.config == asked for each in kept):
            typer.echo(f"{name}: {self.out} has it already")
            return
        if asked is not None and kept:
            now, before = (flat({**config, "seed": "any"}) for config in (asked, kept[0].config))
            require_same(self.out, before, now, "name another folder for other settings")
        with track(f"train {name}") as task:
            score, arrays, config, curves = train(task)
        trained = Trained(
            model=name,
            weights=sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest(),
            bundle_version=None,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            decoder=name,
            seed=config.get("seed"),
            parameters=sum(array.size for array in arrays),
            beam_width=None,
            levels=None,
            semantic_ids=None,
            config=config,
            curves=curves,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        run = this_run("scores", device, BATCH, torch.get_num_threads())
        with track(f"rank {name}") as task:
            add_scored(
                self.results, run, trained, score, self.users, lambda done: task(done, len(self.users.targets), "")
            )
        self.results.record = self.results.record.model_copy(update={"differences": self.results.compare()})
        self.results.save(self.out)

    def popularity(self, task: Task) -> tuple[Scorer, list[np.ndarray], dict[str, Any], None]:
        """See `add`."""
        counts = popularity(self.split, self.items)
        return Popularity(counts), [counts], {}, None

    def item_knn(self, task: Task) -> tuple[Scorer, list[np.ndarray], dict[str, Any], None]:
        """See `add`."""
        counts = popularity(self.split, self.items)
        model, config = tuned_item_knn(self.split.train, counts, self.max_history, self.validate)
        votes = model.votes
        return model, [votes.similarity, votes.neighbours, votes.offsets], asdict(config), None

    def item_vectors(self, task: Task) -> tuple[Scorer, list[np.ndarray], dict[str, Any], None]:
        """See `add`."""
        affinity = self.affinity(task)
        return affinity, list(vars(affinity.vectors).values()), asdict(self.training), None

    def votes_alone(self, task: Task) -> tuple[Scorer, list[np.ndarray], dict[str, Any], None]:
        """See `add`: what `genrec votes` adds to a bundle, without the bundle."""
        affinity = self.affinity(task)
        counts = popularity(self.split, self.items)
        knn, neighbourhood = tuned_item_knn(self.split.train, counts, self.max_history, self.validate)
        model, settings = tuned_votes_alone(knn.votes, affinity, self.validate)
        votes = model.votes
        arrays = [votes.similarity, votes.neighbours, votes.offsets, *vars(affinity.vectors).values()]
        return model, arrays, asdict(self.training) | asdict(neighbourhood) | settings, None

    def affinity(self, task: Task) -> Affinity:
        """Learned at the first call."""
        if self._affinity is not None:
            return self._affinity
        vectors = learn_vectors(
            self.split.train,
            self.items,
            self.max_history,
            lambda found: self.validate(Affinity(found, self.max_history)),
            task,
            self.training,
        )
        self._affinity = Affinity(vectors, self.max_history)
        return self._affinity

    def sasrec(self, config: Any, task: Task) -> tuple[Scorer, list[np.ndarray], dict[str, Any], dict[str, Any]]:
        """See `add`. config: a SasrecConfig."""
        from perf.quality.sasrec import train_sasrec

        train = self.split.train
        windows = make_windows(train.offsets, train.rows, self.max_history)
        model, curves = train_sasrec(windows, self.items, self.max_history, config, self.validate, task)
        arrays = [tensor.cpu().numpy() for tensor in model.module.state_dict().values()]
        return model, arrays, asdict(config), asdict(curves) | {"best_epoch": curves.best_epoch}


def main(
    data: Annotated[Path, typer.Argument(help="A dataset folder; semantic IDs are not needed.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results; the rivals that it holds are kept.")],
    rivals: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(RIVALS),
    hidden: Annotated[int, typer.Option(min=1, help="Of SASRec, as all that follows.")] = 128,
    blocks: Annotated[int, typer.Option(min=1)] = 2,
    heads: Annotated[int, typer.Option(min=1)] = 4,
    dropout: Annotated[float, typer.Option(min=0, max=0.9)] = 0.4,
    learning_rate: Annotated[float, typer.Option(min=1e-7)] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of at most 21 items.")] = 128,
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    patience: Annotated[int, typer.Option(min=0, help="Epochs without a better validation result; 0 for never.")] = 0,
    precision: Annotated[
        str, typer.Option(help="Mixed precision: no or bf16.", callback=one_of(("no", "bf16")))
    ] = "no",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train rivals, rank all test users, and write what `genrec compare-report` joins with bundles' results."""
    chosen = rivals.split(",")
    for name in chosen:
        if name not in RIVALS:
            raise typer.BadParameter(f"rival {name!r} is unknown; use some of {', '.join(RIVALS)}")
    if hidden % heads:
        raise typer.BadParameter(f"--hidden {hidden} must be a multiple of --heads {heads}: change one of them")
    config = None
    if SASREC in chosen:
        try:
            from perf.quality.sasrec import SasrecConfig
        except ImportError as error:
            raise typer.BadParameter(
                f"rival sasrec needs RecTools ({error}): run `make rivals`, which installs it in an environment of its "
                "own, or leave it out with --rivals popularity,item-knn,item-vectors,votes-alone"
            ) from error
        config = SasrecConfig(
            hidden, blocks, heads, dropout, learning_rate, batch_size, epochs, patience, precision, seed
        )
    work = Rivals(data, out, seed=seed)
    if POPULARITY in chosen:
        work.add(POPULARITY, work.popularity)
    if ITEM_KNN in chosen:
        work.add(ITEM_KNN, work.item_knn)
    if ITEM_VECTORS in chosen:
        work.add(ITEM_VECTORS, work.item_vectors, asdict(work.training))
    if VOTES_ALONE in chosen:
        work.add(VOTES_ALONE, work.votes_alone)
    if config is not None:
        work.add(SASREC, lambda task: work.sasrec(config, task), asdict(config))
    typer.echo(f"{len(work.results.record.cells)} rankings; report in {write_report(work.results, out)}")


if __name__ == "__main__":
    typer.run(main)
