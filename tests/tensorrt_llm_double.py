"""The test double of TensorRT-LLM: where it lies, and bundles in float32 for it, which the real kernels do not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from genrec.bundle import Bundle

STAND_IN = Path(__file__).parent / "unit" / "engines" / "tensorrt_llm" / "stand_in"


def exported_for_double(bundle: Bundle, path: Path, **settings: Any) -> Bundle:
    """`bundle` for TensorRT-LLM at `path`, with heads of any width, so that what it drafts can be compared closely."""
    from genrec.engines.tensorrt_llm.contract import KERNELS, Kernels
    from genrec_builders.export.tensorrt_llm import export

    anything: Any = Kernels(range(1, 1025), ("float32",))  # type: ignore[arg-type]
    with (
        mock.patch.dict(KERNELS, dict.fromkeys(KERNELS, anything)),
        mock.patch.object(export, "DTYPES", ("float32",)),
    ):
        export.export_tensorrt_llm(bundle.path, path, export.TensorRtLlmConfig(dtype="float32", **settings))
    return Bundle(path)
