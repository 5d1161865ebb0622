"""Opens a checkpoint with whichever decoder it was trained for."""

from __future__ import annotations

import json
from pathlib import Path

from genrec.bundle.checkpoint_shapes import decoder_of
from genrec.model.autoregressive import AutoregressiveModel
from genrec.model.backbone import BackboneModel
from genrec.model.nezha import NezhaModel


def load_checkpoint(folder: Path) -> BackboneModel:
    """The model in `folder`, in float32 and evaluation mode, of the decoder that its config.json names.

    Raises OSError if a file is missing and ValueError if the files do not match.
    """
    try:
        decoder = decoder_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    models: tuple[type[BackboneModel], ...] = (NezhaModel, AutoregressiveModel)
    return next(model for model in models if model.DECODER == decoder).load_checkpoint(folder)
