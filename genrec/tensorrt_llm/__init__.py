"""NEZHA inside TensorRT-LLM: the out-of-tree model (`modeling`), and what it agrees on with its callers (`contract`).

Importing `modeling` registers its classes; it is the only module here that needs torch and the package tensorrt_llm.
"""
