"""Run inside an environment with only what serving needs: no torch there, and a bundle answers.

python tests/serve_check.py build/shop-bundle
"""

import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

from genrec.bundle import Bundle
from genrec.serving.serve import serve_bundle
from genrec_client import Recommender

BUILD_ONLY = ("genrec_builders", "torch", "transformers", "onnx", "sklearn", "pyarrow", "matplotlib")

present = [name for name in BUILD_ONLY if importlib.util.find_spec(name)]
if present:
    sys.exit(f"the serving environment holds {present}; it must do without")
bundle = Bundle(Path(sys.argv[1]))
history = [bundle.catalog.item_ids[row].decode() for row in range(5)]
with tempfile.TemporaryDirectory() as scratch, serve_bundle(bundle.path, log_path=Path(scratch) / "log") as server:
    with Recommender(server.grpc_url, timeout_s=10.0) as client:
        answer = client.recommend(history)
assert len(answer.items) == 10 and answer.valid == answer.drafted, answer
packages = sorted(f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions())
size = sum(file.stat().st_size for file in Path(sys.prefix).rglob("*") if file.is_file() and not file.is_symlink())
print(f"{len(packages)} packages, {size / 2**20:.0f} MiB: {', '.join(packages)}")
print(f"answered from bundle {answer.bundle_version} without {', '.join(BUILD_ONLY)}")
