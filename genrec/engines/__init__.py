"""Engines: token ids in, drafted codes and scores out. One interface, in `base`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from genrec.bundle import CHECKPOINT, ONNX_GRAPH, ONNX_INT8, TENSORRT_LLM
from genrec.engines.base import Engine

if TYPE_CHECKING:
    from genrec.bundle import Bundle

ENGINES = ("onnx", "openvino", "torch", "tensorrt_llm")
# What a deployment decides of an engine of each kind: arguments of its class.
DEPLOYED: dict[str, tuple[str, ...]] = {
    "onnx": ("threads", "precision"),
    "openvino": ("threads", "precision"),
    "torch": ("precision", "device", "buckets", "max_batch_size"),
    "tensorrt_llm": (),
}
PRECISIONS = ("auto", "f32", "bf16", "int8")
# Of engines that have a choice. auto: bf16 of openvino and torch where the processor or GPU is made for it, else f32.
COMPUTES = {"onnx": ("f32", "int8"), "openvino": ("f32", "bf16"), "torch": ("f32", "bf16")}


def require_installed(kind: str) -> None:
    """Raises ImportError that says what to install, where the package of an optional engine is missing."""
    if kind == "openvino" and find_spec("openvino") is None:
        raise ImportError("openvino is not installed, which this engine needs: pip install 'genrec-triton[openvino]'")


def require_precision(kind: str, precision: str) -> None:
    """Raises ValueError for what an engine of `kind` does not compute in; every one takes "auto"."""
    able = COMPUTES.get(kind, ())
    if precision not in ("auto", *able):
        others = " or ".join(f"{engine} ({', '.join(found)})" for engine, found in COMPUTES.items())
        mine = f"computes in {' or '.join(able)}" if able else "has no choice"
        raise ValueError(
            f"precision {precision!r} with engine {kind}, which {mine}: leave it at auto, or choose of {others}"
        )


def open_engine(bundle: Bundle, kind: str = "onnx", **options: Any) -> Engine:
    """The engine of `kind` over a bundle's files; options go to its class. Imports only what it needs.

    buckets, of torch: also as a deployment names them, see `Buckets.of`, for batches of up to max_batch_size; "auto"
    records on a GPU only.
    """
    width = bundle.space.beams(bundle.manifest.beam_width)
    if kind == "onnx":
        from genrec.engines.onnx import OnnxEngine

        graph = bundle.path / (ONNX_INT8 if options.get("precision") == "int8" else ONNX_GRAPH)
        if not graph.exists():
            raise ValueError(f"{graph} is missing: the bundle is older than it; make a newer one with `genrec export`")
        return OnnxEngine(graph, bundle.graph_masks, width, **options)
    if kind == "openvino":
        require_installed(kind)
        from genrec.engines.openvino import OpenVinoEngine

        longest = bundle.layout.max_tokens
        return OpenVinoEngine(bundle.path / ONNX_GRAPH, bundle.graph_masks, width, longest, **options)
    if kind == "torch":
        from genrec.engines.buckets import AUTO, NONE, Buckets
        from genrec.engines.torch import TorchEngine, device_of

        if isinstance(text := options.get("buckets"), str):
            if text == AUTO and device_of(options.get("device")).type != "cuda":
                text = NONE
            options["buckets"] = Buckets.of(text, bundle.layout.max_tokens, options.pop("max_batch_size"))
        return TorchEngine(bundle.path / CHECKPOINT, bundle.masks, width, **options)
    if kind == "tensorrt_llm":
        from genrec.engines.tensorrt_llm.engine import open_folder

        return open_folder(bundle.path / TENSORRT_LLM, bundle.masks, width, bundle.layout.max_tokens, **options)
    raise ValueError(f"engine {kind!r} is unknown; use one of {ENGINES}")
