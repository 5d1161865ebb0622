PYTHON ?= python3
lock:
	uv pip compile pyproject.toml --extra dev --python $(PYTHON) --no-header --no-annotate $(UV_ARGS) -q --upgrade -o constraints.txt
	sed -i -E '/^(torch|triton|nvidia-(cu|nc|nv)[a-z0-9-]*|cuda-[a-z]+)==/d' constraints.txt
