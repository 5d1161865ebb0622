"""What a build needs, checked before its first step: places, data, limits, disk."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from genrec.bundle import BUNDLE, TOKENIZER
from genrec.catalog import SemanticIdSpace
from genrec.errors import DataError
from genrec.prompt import Limits
from genrec.reporting.outputs import Output, require_output, require_replaceable, require_space
from genrec_builders.config import BuildConfig
from genrec_builders.data import Dataset, Split
from genrec_builders.data.report import problems, training_targets

STATE, _MARK = "training.pt", "work.json"
_WORK_FILES = (_MARK, STATE, "training.tmp", TOKENIZER)
WORK = Output.of_patterns("the work of a build", [_MARK, STATE], _WORK_FILES)
_FLOAT32 = 4


def require_places(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raises ValueError or OSError if the bundle `out`, or what is kept until it is there, would replace anything else.

    inputs: files and folders that the build reads.
    """
    inputs = list(inputs)
    require_replaceable(out, BUNDLE, inputs)
    require_output(work_of(out), WORK, inputs)


def work_of(out: Path) -> Path:
    """Where a build of `out` keeps what it has trained so far."""
    out = out.resolve() if out.name in ("", "..") else out
    return out.with_name(out.name + ".work")


def new_work(out: Path) -> Path:
    """The folder of `work_of`, made if it is not there."""
    work = work_of(out)
    work.mkdir(parents=True, exist_ok=True)
    (work / _MARK).write_text('{"written_by": "genrec build", "removed_when": "the bundle is there"}\n')
    return work


def remove_work(out: Path) -> None:
    """Remove the folder of `work_of`, but for files of others."""
    for name in _WORK_FILES:
        (work_of(out) / name).unlink(missing_ok=True)
    with suppress(OSError):
        work_of(out).rmdir()


def require_data(dataset: Dataset, split: Split, config: BuildConfig) -> str:
    """What there is to learn from, in words. Raises DataError, with numbers, if that is not enough.

    Without epochs nothing is trained, and no target needed.
    """
    if refused := problems(dataset, split, trains=config.training.epochs > 0):
        raise DataError("; ".join(refused))
    asked = 0
    if config.max_query and split.train.queries is not None:
        asked = sum(map(bool, split.train.queries.to_pylist()))
        if config.training.epochs and not asked:
            raise DataError(
                f"max_query is {config.max_query}, but none of the {len(split.train.rows):,} interactions to train on "
                "has a query; fill the column `query`, or build without max_query"
            )
    queries = f", {asked:,} of them with a query" if asked else ""
    validated = min(config.validation_users, len(split.validation))
    few = f" ({config.validation_users:,} were asked for)" if validated < config.validation_users else ""
    return (
        f"split {split.protocol}: {training_targets(split):,} targets to train on{queries}, {validated:,} users to "
        f"validate with{few}, {len(split.test):,} to test with"
    )


def require_limits(beam_width: int, limits: Limits, space: SemanticIdSpace) -> None:
    """Raises ValueError for a bundle that could not be served: history and excluded items take places."""
    if beam_width < (least := space.beams(2 * limits.top_k)):
        raise ValueError(
            f"beam width {beam_width} is too narrow: use at least {least}, twice the {limits.top_k} items that a "
            f"request may ask for, or build with a smaller --max-top-k"
        )
    if limits.default_top_k > limits.top_k:
        raise ValueError(
            f"default_top_k {limits.default_top_k} is above top_k {limits.top_k}, the most that a request may ask for; "
            "lower it"
        )


def require_disk(out: Path, parameters: int, config: BuildConfig) -> None:
    """Raises OSError if the disk has no room for what training keeps and for the bundle.

    A state has the weights, two moments of each and, with validation, the best epoch's weights; the old one stays until
    the new one is whole. A bundle has the weights twice, as a checkpoint and in a graph, when the state is still there.
    """
    state = _FLOAT32 * parameters * (4 if config.validation_users else 3)
    kept = work_of(out) / STATE
    have = kept.stat().st_size if kept.exists() else 0
    needed = max(2 * state, state + 2 * _FLOAT32 * parameters) - have
    require_space(out, needed, f"a build of {parameters:,} parameters")
