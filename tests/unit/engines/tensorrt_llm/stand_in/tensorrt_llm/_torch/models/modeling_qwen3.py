"""TEST DOUBLE."""

from .modeling_utils import SpecDecOneEngineForCausalLM, register_auto_model


@register_auto_model("Qwen3ForCausalLM")
class Qwen3ForCausalLM(SpecDecOneEngineForCausalLM):
    pass
