"""What the model inside TensorRT-LLM, the engine that asks it and the builder of its folder agree on."""

from __future__ import annotations

from dataclasses import dataclass

# The release of TensorRT-LLM that this is written for; api.json in genrec_builders/export/tensorrt_llm lists what is
# used of it.
RELEASE = "1.2.1"
# Additional outputs of the model: int64 and float32, a row of K for every sequence of a batch, contexts first.
CODES, SCORES = "draft_codes", "draft_scores"
# The code of a row that holds no drafts, its scores NaN: the step did not compute h_0 .. h_L of that sequence, because
# a cached prefix reached into them, or because the sequence was no context.
NO_DRAFTS = -2
# A request with a rule has one more token, behind its placeholders: which row of the model's `MAX_RULES` its rule is.
# Nothing that is read of the prompt sees it. TensorRT-LLM hands a model nothing else of one request.
RULE_TOKENS, MAX_RULES = 1, 4096

# Key of the folder's config.json: the bundle, relative to the folder.
BUNDLE_KEY = "genrec_bundle"
# The name of the folder's model class, by transformers' model type.
ARCHITECTURES = {"qwen3": "NezhaQwen3ForCausalLM", "llama": "NezhaLlamaForCausalLM"}
# Arguments of tensorrt_llm.LLM, beside the model.
LLM_ARGUMENTS = "llm_args.yaml"
# Data types of the backbone's weights, as torch and transformers name them; the draft head's are float32.
DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Kernels:
    """What the kernels of a family take, as their source reads.

    head_dims: widths of an attention head. dtypes: of `DTYPES`.
    """

    head_dims: tuple[int, ...]
    dtypes: tuple[str, ...]


KERNELS = {
    # fusedQKNormRopeKernel.cu and fusedQKNormRopeOp.cpp: norm of queries and keys with rotary positions, in bfloat16.
    "qwen3": Kernels((64, 128, 256), ("bfloat16",)),
    # decoderMaskedMultiheadAttention.cu, MMHA_SUPPORTED_HEAD_SIZES.
    "llama": Kernels((32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256), DTYPES),
}
