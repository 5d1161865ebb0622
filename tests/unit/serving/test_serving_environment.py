"""What serves imports no builder, no benchmark and nothing that only training needs."""

from __future__ import annotations

import subprocess
import sys

from genrec.serving.repository import STEPS, source_repository

# Everything that a served bundle runs in: the three steps' imports, the launcher, the command and its own commands.
PROGRAM = """
import importlib, re, sys
from importlib.abc import MetaPathFinder
from importlib.metadata import entry_points
from pathlib import Path

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(f"serving imports {{name}}")

sys.meta_path.insert(0, Refuse())
for file in {files}:
    for module in re.findall(r"^from (genrec[.\\w]*) import", Path(file).read_text(), re.M):
        if module not in {of_triton}:  # they import Triton's own module
            importlib.import_module(module)
for module in ("genrec.serving.serve", "genrec.serving.statistics", "genrec.engines.onnx", "genrec.pipeline"):
    importlib.import_module(module)
for entry in entry_points(group="genrec.commands"):
    if entry.dist.name == "genrec-triton":
        entry.load()
print("served")
"""
OF_TRITON = {"genrec.serving.page", "genrec.serving.step", "genrec.serving.metrics"}
REFUSED = {"genrec_builders", "perf", "torch", "transformers", "accelerate", "onnx", "sklearn", "pyarrow", "matplotlib"}


def test_serving_imports_no_builder_and_nothing_of_training() -> None:
    files = [str(source_repository() / step / "1" / "model.py") for step in STEPS]
    program = PROGRAM.format(refused=REFUSED, files=files, of_triton=OF_TRITON)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "served\n", done.stderr


def test_the_package_brings_its_model_repository() -> None:
    configs = sorted(path.parent.name for path in source_repository().glob("*/config.pbtxt"))
    assert configs == sorted([*STEPS, "recommend", "knowledge"])
