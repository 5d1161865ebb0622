"""Makes and checks what TensorRT-LLM serves a bundle with."""
