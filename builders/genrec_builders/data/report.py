"""What a dataset holds, and what a build makes of it: used, dropped, refused."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from genrec.catalog import SemanticIdSpace
from genrec.prompt import PromptLayout
from genrec_builders.data.found import Found, some
from genrec_builders.data.split import TESTED_FROM, Split, popularity, split_leave_one_out
from genrec_builders.data.tables import Dataset, Interactions, ItemTable


def summary(dataset: Dataset, found: Found) -> list[str]:
    """One line on what was read and, if something was not used, one on that."""
    interactions = dataset.interactions
    lines = [
        f"data: {found.taken()}; {len(interactions):,} users, {len(interactions.rows):,} interactions, "
        f"{len(dataset.items):,} items"
    ]
    if unused := found.not_used():
        lines.append(f"not used: {'; '.join(unused)}")
    return lines


def describe(dataset: Dataset, found: Found) -> list[tuple[str, str]]:
    """(what, in words) of everything that a build reads from the folder."""
    items, interactions = dataset.items, dataset.interactions
    split = split_leave_one_out(interactions)
    return [
        ("folder", str(found.folder)),
        ("files", found.taken()),
        ("not used", "; ".join(found.not_used()) or "nothing is left out"),
        ("users", _users(interactions, split)),
        ("interactions", _lengths(interactions, split)),
        ("items", _items(dataset, split)),
        ("semantic IDs", _semantic_ids(items)),
        ("embeddings", "none" if items.embeddings is None else f"{items.embeddings.shape[1]} dimensions"),
        ("attributes", _attributes(items)),
        ("queries", _queries(interactions)),
    ]


def problems(dataset: Dataset, split: Split, trains: bool = True) -> list[str]:
    """Why a build refuses the dataset; empty if it does not. trains: whether it has epochs, which need targets."""
    items, lengths = dataset.items, np.diff(split.train.offsets)
    found = []
    if items.levels is not None:
        try:
            PromptLayout.contiguous(SemanticIdSpace(items.levels), max_history=1)
        except ValueError as error:
            found.append(str(error))
    elif items.embeddings is None:
        columns = some([repr(name) for name in items.attributes])
        rename = f"; if one of the columns {columns} holds them, name it 'sid' or 'embedding'" if columns else ""
        found.append(
            f"the catalogue has neither semantic IDs nor embeddings to make them from; add one of them{rename}"
        )
    if not (tested := len(split.test)):
        found.append(
            f"there is nothing to test with: the longest of {len(lengths):,} histories has {lengths.max(initial=0)} "
            f"interactions, and a user is tested with {TESTED_FROM} or more; give longer histories"
        )
    elif trains and not training_targets(split):
        found.append(
            f"there is nothing to train on: {tested:,} of {len(lengths):,} users have {TESTED_FROM} interactions or "
            "more, of which the last two are held out, and none has two besides (the most are "
            f"{lengths.max()}); give longer histories"
        )
    return found


def training_targets(split: Split) -> int:
    """Training targets: every item of a user's training part but the first."""
    return int(np.maximum(np.diff(split.train.offsets) - 1, 0).sum())


def _users(interactions: Interactions, split: Split) -> str:
    lengths = np.diff(interactions.offsets)
    tested = int((lengths >= TESTED_FROM).sum())
    untrained = int((np.diff(split.train.offsets) < 2).sum())
    return (
        f"{len(lengths):,}; {tested:,} to test with, {len(lengths) - tested:,} too short for that (under {TESTED_FROM} "
        f"interactions); {untrained:,} too short to train on (under 2 left in training)"
    )


def _lengths(interactions: Interactions, split: Split) -> str:
    lengths = np.diff(interactions.offsets)
    return (
        f"{len(interactions.rows):,}; {lengths.min()} to {lengths.max()} per user, median {np.median(lengths):g}; "
        f"{training_targets(split):,} training targets"
    )


def _items(dataset: Dataset, split: Split) -> str:
    n = len(dataset.items)
    bought = np.bincount(dataset.interactions.rows, minlength=n)
    trained = popularity(split, n)
    never = int((bought == 0).sum())
    return f"{n:,}; {never:,} never bought, {int((trained == 0).sum()) - never:,} bought only in what is held out"


def _attributes(items: ItemTable) -> str:
    kinds = items.typed.kinds
    texts = [f"{name!r} ({'text only' if name not in kinds else kinds[name]})" for name in items.attributes]
    return (
        ", ".join([*texts, *(f"{name!r} ({kind})" for name, kind in kinds.items() if name not in items.attributes)])
        or "none"
    )


def _semantic_ids(items: ItemTable) -> str:
    if items.sids is None or items.levels is None:
        return "none" if items.embeddings is None else "none; a build makes them from the embeddings"
    from genrec_builders.semantic_ids import collision_report

    used = [len(np.unique(codes)) for codes in items.sids.T]
    report = collision_report(items.sids)
    return (
        f"{len(items.levels)} levels of {', '.join(map(str, items.levels))} codes ({', '.join(map(str, used))} used); "
        f"{report.distinct:,} distinct, {report.colliding_share:.1%} of the items share theirs, "
        f"at most {report.largest_bucket:,} items one"
    )


def _queries(interactions: Interactions) -> str:
    if interactions.queries is None:
        return "none"
    asked = int((pc.binary_length(interactions.queries).to_numpy(zero_copy_only=False) > 0).sum())
    return f"{asked:,} of {len(interactions.rows):,} interactions have one"
