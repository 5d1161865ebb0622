"""The folder that TensorRT-LLM serves: its configuration and arguments, and what of them would give wrong answers."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from genrec.bundle.checkpoint_shapes import DRAFT_HEAD
from genrec.engines.tensorrt_llm.contract import LLM_ARGUMENTS

QUANTISATION = "hf_quant_config.json"
# Values that leave an argument off.
_OFF: tuple[object, ...] = (None, False, {}, "disabled", "none")


def read_folder(folder: Path, given: dict[str, Any], max_prompt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and the LLM's arguments with the `given` ones in place of the folder's.

    max_prompt: tokens of the longest prompt. Raises ValueError for files that are missing or cannot be read, for
    arguments that would hide from the draft head what it reads, and for those that are too small for that prompt.
    """
    try:
        import yaml

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arguments = yaml.safe_load((folder / LLM_ARGUMENTS).read_text(encoding="utf-8")) | given
        quantisation = _quantisation(folder, config, arguments)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: is missing; make a bundle that TensorRT-LLM serves with `genrec export-tensorrt-llm`"
        ) from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: cannot be read: {error}") from error
    where = folder / LLM_ARGUMENTS
    for name, why in _refused(config, arguments).items():
        if (value := arguments.get(name)) not in _OFF:
            raise ValueError(f"{where}: {name} is {value!r}; {why}. Take it out")
    _require_plain_inputs(folder, config, quantisation)
    for name, least in _least(max_prompt).items():
        if (value := arguments.get(name)) is not None and value < least:
            raise ValueError(f"{where}: {name} is {value}, below the {least} of the longest prompt")
    return config, arguments


def leaves_room(arguments: dict[str, Any], tokens: int) -> bool:
    """Whether the LLM's arguments leave room for a prompt of `tokens`."""
    return all((value := arguments.get(name)) is None or value >= least for name, least in _least(tokens).items())


def _least(tokens: int) -> dict[str, int]:
    """The arguments that limit the length of a prompt, and what one of `tokens` needs of each."""
    return {"max_num_tokens": tokens, "max_seq_len": tokens + 1}


def _refused(config: dict[str, Any], arguments: dict[str, Any]) -> dict[str, str]:
    """Arguments that have to be off, with the reason."""
    refused = {
        "enable_chunked_prefill": "a chunk could cut apart what the draft head reads",
        "enable_attention_dp": "its dummy requests ask for no outputs, which ends every step that has one",
    }
    if _reads_history(config):
        replayed = "a replay skips the hook that keeps the history for the draft head, which then reads an older one"
        # torch.compile with piecewise graphs up to 1.2; a backend of graphs for prefills from 1.3 on.
        refused |= dict.fromkeys(("torch_compile_config", "prefill_cuda_graph_backend"), replayed)
    if arguments.get("encode_only"):
        refused["cuda_graph_config"] = "with encode_only the graphs would hold the prefill, and the head that reads it"
    return refused


def _reads_history(config: dict[str, Any]) -> bool:
    return bool(config.get(DRAFT_HEAD, {}).get("attention_heads", 0))


def _quantisation(folder: Path, config: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """How the weights are quantised, by whichever of its three places says so; {} if they are not."""
    if given := arguments.get("quant_config"):
        return given if isinstance(given, dict) else {"quant_algo": str(given)}
    if (file := folder / QUANTISATION).is_file():
        return json.loads(file.read_text(encoding="utf-8"))["quantization"]
    return config.get("quantization_config") or {}


def _require_plain_inputs(folder: Path, config: dict[str, Any], quantisation: dict[str, Any]) -> None:
    """Raise ValueError if the inputs of the last layer's attention are quantised, which the draft head reads."""
    algorithm = str(quantisation.get("quant_algo") or quantisation.get("quant_method") or "").lower()
    if not _reads_history(config) or not algorithm or "a16" in algorithm:  # a16: weights alone
        return
    attention = f"model.layers.{config['num_hidden_layers'] - 1}.self_attn"
    excluded = quantisation.get("exclude_modules") or quantisation.get("ignore") or []
    if not any(fnmatch(f"{attention}.qkv_proj", pattern) or pattern == attention for pattern in excluded):
        raise ValueError(
            f"{folder}: its weights are quantised as {algorithm}, and the inputs of {attention} with them, which the "
            f"draft head reads. Leave {attention}* out of the quantisation (exclude_modules)"
        )
