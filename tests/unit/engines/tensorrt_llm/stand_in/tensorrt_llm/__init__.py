"""A TEST DOUBLE of TensorRT-LLM, for the CPU: the few classes that genrec touches, behaving as its source reads.

Not TensorRT-LLM, and no measure of its speed. What it imitates, and where that was read: docs/tensorrt-llm.md.
"""

from .llm import LLM, RequestError, SamplingParams

__version__ = "0.0.0+test.double"
__all__ = ["LLM", "RequestError", "SamplingParams"]
