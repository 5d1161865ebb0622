"""NEZHA inside TensorRT-LLM: the out-of-tree model (`modeling`), and what it agrees on with its callers (`contract`).

Importing `modeling` registers its classes. `drafter` is for the language models of knowledge texts. These two need the
package tensorrt_llm.
"""
