"""Whether written knowledge texts help a recommender: AUC without them, with greedy ones and with relaxed ones.

python -m perf.knowledge.downstream build/knowledge build/shop build/downstream

Texts that OUT holds already are not written again; those of another folder or of other settings are refused. The
made-up texts that the small model was trained on are compared too: what texts without its mistakes would be worth. A
model of one's own is not compared with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from genrec.knowledge.offline import GenerationOptions, generate
from genrec.reporting.machine import provenance
from genrec.reporting.progress import track
from genrec_builders.data import Dataset, read_dataset
from genrec_builders.knowledge.folder import training_histories
from genrec_builders.knowledge.texts import item_texts, user_texts
from perf.knowledge.features import NONE, Downstream, EntityTexts, compare_texts

RESULTS = "downstream.json"
GREEDY, RELAXED, MADE_UP = "greedy", "relaxed", "made-up"
console = Console()


def drawn_users(dataset: Dataset, count: int, path: Path) -> None:
    """Write `count` users, drawn at random, with their training part as history: what the texts may be written of."""
    histories = {user: history for user, history in training_histories(dataset).items() if history}
    drawn = np.random.default_rng(0).permutation(sorted(histories))[:count].tolist()
    table = pa.table({"user_id": drawn, "history": [histories[user] for user in drawn]})
    pq.write_table(table, path)


def written_texts(folder: Path, users: Path, items: Path, out: Path, options: GenerationOptions) -> EntityTexts:
    """What the folder's model writes of both files; kept in `out`, and written once.

    Raises ValueError if `out` has texts of another folder, of other entities or options.
    """
    found = []
    for kind, source in (("users", users), ("items", items)):
        path = out / f"{kind}-{options.verification}.parquet"
        report = generate(folder, source, path, options, track)
        console.print(f"{path.name}: {report.tokens_per_s:.0f} tokens/s, {report.tokens_per_step:.2f} per step")
        rows = pq.read_table(path, columns=["id", "text"]).to_pylist()
        found.append({row["id"]: row["text"] for row in rows if row["text"]})
    return EntityTexts(*found)


def text_sets(
    dataset: Dataset, folder: Path, data: Path, out: Path, users: int, max_new_tokens: int | None
) -> dict[str, EntityTexts]:
    """Texts of `users` users and all items by name: greedy, relaxed, and the made-up ones where there are any."""
    source = out / "users.parquet"
    drawn_users(dataset, users, source)
    sets = {}
    for verification in (GREEDY, RELAXED):
        options = GenerationOptions(verification=verification, batch_size=16, max_new_tokens=max_new_tokens)
        sets[verification] = written_texts(folder, source, data / "items.parquet", out, options)
    try:
        made_up = [{text.entity: text.text for text in texts} for texts in (user_texts(dataset), item_texts(dataset))]
        sets[MADE_UP] = EntityTexts(*made_up)
    except ValueError as error:
        console.print(f"no made-up texts: {error}")
    return sets


def differences(found: Downstream) -> list[dict[str, Any]]:
    """Every set of texts against none, and relaxed ones against greedy ones: mean AUC and interval, for JSON."""
    rows = []
    for name, other in (*((name, NONE) for name in found.auc if name != NONE), (RELAXED, GREEDY)):
        interval = found.difference(name, other)
        assert interval is not None
        rows.append({"texts": name, "against": other, "auc": found.auc[name].mean(), **vars(interval)})
    return rows


def print_differences(found: Downstream, rows: Sequence[dict[str, Any]]) -> None:
    table = Table("texts", "AUC", "against", "difference, 95 % interval", title=f"{len(found.users)} users")
    for row in rows:
        table.add_row(
            row["texts"],
            f"{row['auc']:.4f}",
            f"{row['against']} ({found.auc[row['against']].mean():.4f})",
            f"{row['relative']:+.2%} ({row['low']:+.2%} to {row['high']:+.2%})",
        )
    console.print(table)


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The dataset that it was built on.")],
    out: Annotated[Path, typer.Argument(help=f"Folder of the texts and {RESULTS}.")],
    users: Annotated[
        int, typer.Option(min=20, help="Users whose texts are written, besides those of all items.")
    ] = 3000,
    max_new_tokens: Annotated[
        Optional[int], typer.Option(help="The most tokens of a text; the folder's limit by default.")
    ] = None,
) -> None:
    """Write the texts of users and all items, greedy and relaxed, and compare what they are worth."""
    dataset = read_dataset(data)
    out.mkdir(parents=True, exist_ok=True)
    sets = text_sets(dataset, folder, data, out, users, max_new_tokens)
    found = compare_texts(dataset, sets)
    rows = differences(found)
    print_differences(found, rows)
    settings = provenance(users=len(found.users), items=len(sets[GREEDY].items))
    (out / RESULTS).write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
