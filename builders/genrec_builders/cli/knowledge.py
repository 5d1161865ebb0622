"""`genrec knowledge`: makes the folder of a knowledge model, and writes texts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

# Heavy imports stay inside the commands: `genrec --help` must not load torch.

console = Console()


def _training(text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Training, without a checkpoint", **limits)


def build(
    data: Annotated[
        Path, typer.Argument(help="A dataset folder, with interactions and items in any form of docs/data.md.")
    ],
    out: Annotated[Path, typer.Argument(help="Where the knowledge folder goes; one that is there is replaced.")],
    checkpoint: Annotated[
        Optional[Path],
        typer.Option(help="A causal language model of the Qwen3 or Llama family, a Hugging Face folder."),
    ] = None,
    own_texts: Annotated[
        int, typer.Option(min=0, help="Texts that the model writes for its pools to begin with.")
    ] = 1000,
    harder: Annotated[bool, _training("On texts with twice the novelty.")] = False,
    texts: Annotated[Optional[int], _training("Texts to train on; the recipe's number by default.", min=1)] = None,
    epochs: Annotated[Optional[int], _training("Passes over the texts; the recipe's number by default.", min=1)] = None,
    seed: Annotated[int, _training("Seed of everything random.", min=0)] = 0,
) -> None:
    """Make a knowledge folder: language model, catalogue, groups of users and items, retrieval pools.

    Without a checkpoint a small model is trained on made-up texts, for data of `genrec demo-shop` only.
    """
    from dataclasses import replace

    from genrec_builders.training.checkpoint_facts import require_language_model

    if checkpoint is not None:
        require_language_model(checkpoint)  # before torch is loaded and the data read

    from genrec.reporting.outputs import require_replaceable
    from genrec.reporting.progress import track
    from genrec_builders.data import read_dataset
    from genrec_builders.knowledge.folder import KNOWLEDGE, build_folder
    from genrec_builders.knowledge.language_model import LanguageModelConfig

    require_replaceable(out, KNOWLEDGE, [data, checkpoint])
    default = LanguageModelConfig()
    training = replace(default.training, epochs=epochs or default.training.epochs, seed=seed)
    config = replace(default, texts=texts or default.texts, training=training)
    dataset = read_dataset(data)
    with track("knowledge folder") as task:
        build_folder(
            dataset,
            out,
            checkpoint=checkpoint,
            config=config,
            harder=harder,
            own_texts=own_texts,
            progress=lambda step, steps, loss: task(step, steps, f"loss {loss:.3f}" if loss else "texts for the pools"),
        )
    typer.echo(f"knowledge folder in {out}")


def grow(
    folder: Annotated[Path, typer.Argument(help="A knowledge folder.")],
    texts: Annotated[list[Path], typer.Argument(help="What `generate` wrote with it: all shards.")],
) -> None:
    """Add written texts to the folder's pools, to draft later ones from them. Files that were added are left out.

    To be done when all shards are: an interrupted `generate` does not go on with a folder that has changed.
    """
    from genrec_builders.knowledge.folder import grow_pools

    typer.echo(f"{grow_pools(folder, texts)} texts added to the pools of {folder}")


def demo(
    data: Annotated[Path, typer.Argument(help="The demo shop.")],
    bundle: Annotated[Path, typer.Argument(help="Its bundle: the server also recommends.")],
    folder: Annotated[Path, typer.Argument(help="The knowledge folder; made if it is not there.")],
) -> None:
    """Stream the texts of 200 users from a real server, show five, and compare with decoding one token at a time."""
    from genrec.bundle import Bundle
    from genrec_builders.knowledge.demo import run_knowledge_demo

    Bundle(bundle).check()  # now, not when the folder has been trained
    run_knowledge_demo(data, bundle, folder, console)
