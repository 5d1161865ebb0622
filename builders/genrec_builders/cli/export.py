"""`genrec export` and `genrec export-tensorrt-llm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from genrec.cli.arguments import BundlePath, one_of, usage
from genrec.engines.tensorrt_llm.contract import DTYPES


def export(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Where the new bundle goes; another one that is there is replaced.")],
    beam_width: Annotated[
        Optional[int],
        typer.Option(min=2, help="Beams drafted; at least twice the largest top_k. The bundle's by default."),
    ] = None,
) -> None:
    """Copy a bundle with its checkpoint exported again: for another beam width, or in the newest format."""
    from genrec_builders.build import export_bundle

    manifest = export_bundle(bundle_path, out, beam_width)
    typer.echo(f"bundle {manifest.bundle_version} in {out}, beam width {manifest.beam_width}")


def export_tensorrt_llm(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Where the new bundle goes; another one that is there is replaced.")],
    dtype: Annotated[
        str, typer.Option(help="Of the backbone: bfloat16, or float16 of a Llama.", callback=one_of(DTYPES))
    ] = "bfloat16",
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests of one step.")] = 64,
    max_num_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens of one step.")] = 8192,
    kv_cache_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Of the GPU memory that is left free.")
    ] = 0.5,
    reuse: Annotated[bool, typer.Option(help="Keep the KV cache of prompts for later ones that start alike.")] = False,
    cuda_graphs: Annotated[bool, typer.Option(help="Capture batches without prompts; NEZHA has none.")] = False,
    drop_block: Annotated[
        Optional[int], typer.Option(min=1, help="Items that a long history loses together; the bundle's by default.")
    ] = None,
) -> None:
    """Copy a bundle with what TensorRT-LLM serves it with: `genrec serve OUT --engine tensorrt_llm`."""
    from genrec_builders.export.tensorrt_llm.export import TensorRtLlmConfig, export_tensorrt_llm

    with usage():
        config = TensorRtLlmConfig(dtype, max_batch_size, max_num_tokens, kv_cache_fraction, reuse, cuda_graphs)
    manifest = export_tensorrt_llm(bundle_path, out, config, drop_block)
    typer.echo(f"bundle {manifest.bundle_version} in {out}, for TensorRT-LLM in {dtype}")
