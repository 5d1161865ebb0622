"""Whether written knowledge texts help a recommender: AUC without them, with greedy ones and with relaxed ones.

python -m perf.knowledge.downstream build/knowledge build/shop build/downstream

Texts that OUT holds already are not written again; those of another folder or of other settings are refused. The
made-up texts that the small model was trained on are compared too: what texts without its mistakes would be worth. A
model of one's own is not compared with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from genrec.knowledge.offline import Options, generate
from genrec.reporting.machine import provenance
from genrec.reporting.progress import track
from genrec_builders.data import Dataset, read_dataset
from genrec_builders.knowledge.folder import training_histories
from genrec_builders.knowledge.texts import item_texts, user_texts
from perf.knowledge.features import NONE, EntityTexts, compare_texts

RESULTS = "downstream.json"
GREEDY, RELAXED, MADE_UP = "greedy", "relaxed", "made-up"
console = Console()


def drawn_users(dataset: Dataset, count: int, path: Path) -> None:
    """Write `count` users, drawn at random, with their training part as history: what the texts may be written of."""
    histories = {user: history for user, history in training_histories(dataset).items() if history}
    drawn = np.random.default_rng(0).permutation(sorted(histories))[:count].tolist()
    table = pa.table({"user_id": drawn, "history": [histories[user] for user in drawn]})
    pq.write_table(table, path)


def written_texts(folder: Path, users: Path, items: Path, out: Path, options: Options) -> EntityTexts:
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


def main(
    folder: Annotated[Path, typer.Argument(help="A folder of `genrec knowledge build`.")],
    data: Annotated[Path, typer.Argument(help="The dataset that it was built on.")],
    out: Annotated[Path, typer.Argument(help=f"Folder of the texts and {RESULTS}.")],
    users: Annotated[
        int, typer.Option(min=20, help="Users whose texts are written, besides those of all items.")
    ] = 3000,
    max_new_tokens: Annotated[Optional[int], typer.Option(help="Of a text; the folder's limit by default.")] = None,
) -> None:
    """Write the texts of users and all items, greedy and relaxed, and compare what they are worth."""
    dataset = read_dataset(data)
    out.mkdir(parents=True, exist_ok=True)
    source = out / "users.parquet"
    drawn_users(dataset, users, source)
    sets = {}
    for verification in (GREEDY, RELAXED):
        options = Options(verification=verification, batch_size=16, max_new_tokens=max_new_tokens)
        sets[verification] = written_texts(folder, source, data / "items.parquet", out, options)
    try:
        made_up = [{text.entity: text.text for text in texts} for texts in (user_texts(dataset), item_texts(dataset))]
        sets[MADE_UP] = EntityTexts(*made_up)
    except ValueError as error:
        console.print(f"no made-up texts: {error}")
    found = compare_texts(dataset, sets)
    table = Table("texts", "AUC", "against", "difference, 95 % interval", title=f"{len(found.users)} users")
    rows = []
    for name, other in (*((name, NONE) for name in sets), (RELAXED, GREEDY)):
        interval = found.difference(name, other)
        assert interval is not None
        rows.append({"texts": name, "against": other, "auc": found.auc[name].mean(), **vars(interval)})
        table.add_row(
            name,
            f"{rows[-1]['auc']:.4f}",
            f"{other} ({found.auc[other].mean():.4f})",
            f"{interval.relative:+.2%} ({interval.low:+.2%} to {interval.high:+.2%})",
        )
    console.print(table)
    settings = provenance(users=len(found.users), items=len(sets[GREEDY].items))
    (out / RESULTS).write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
