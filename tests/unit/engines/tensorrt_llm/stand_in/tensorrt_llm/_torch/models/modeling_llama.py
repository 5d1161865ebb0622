"""TEST DOUBLE."""

from .modeling_utils import SpecDecOneEngineForCausalLM, register_auto_model


@register_auto_model("LlamaForCausalLM")
class LlamaForCausalLM(SpecDecOneEngineForCausalLM):
    pass
