"""The images' recipes, as far as they can be checked unbuilt: where packages go, what is looked for, how they start."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from k8s.images import check

IMAGES = Path(__file__).parents[2] / "k8s" / "images"
VENV = "/opt/venv-tritonserver"  # of NVIDIA's image of Triton with TensorRT-LLM


def recipe(name: str) -> list[str]:
    """The instructions of an image, each on one line, comments left out."""
    text = re.sub(r"^#.*\n", "", (IMAGES / name / "Containerfile").read_text(), flags=re.M)
    return [re.sub(r"\s+", " ", line) for line in text.replace("\\\n", " ").splitlines() if line]


def entry_point(name: str) -> list[str]:
    (line,) = [line for line in recipe(name) if line.startswith("ENTRYPOINT ")]
    return json.loads(line.removeprefix("ENTRYPOINT "))


def test_tensorrt_llm_and_genrec_share_an_environment() -> None:
    lines = recipe("tensorrt-llm")
    assert f"ENV VIRTUAL_ENV={VENV}" in lines
    assert not [line for line in lines if "-m venv" in line], "another one would see no tensorrt_llm"
    installs = [part for line in lines for part in line.split(" && ") if "pip install" in part]
    assert len(installs) == 2 and all("python -m pip install" in part for part in installs)
    assert [line for line in lines if 'test "$(command -v python)" = ${VIRTUAL_ENV}/bin/python' in line]
    assert [line for line in lines if "check.py torch --found tensorrt_llm" in line]


def test_tensorrt_llm_is_the_release_that_genrec_is_written_for() -> None:
    (base,) = [line for line in recipe("tensorrt-llm") if line.startswith("ARG BASE=")]
    assert base.endswith(":26.07-trtllm-python-py3")


def test_every_image_starts_genrec_and_nvidias_own_start_stays() -> None:
    assert entry_point("cpu") == entry_point("gpu") == ["genrec"]
    assert entry_point("tensorrt-llm") == ["/opt/nvidia/nvidia_entrypoint.sh", "genrec"]


@pytest.mark.parametrize("name", ["cpu", "gpu", "tensorrt-llm"])
def test_every_image_is_checked_and_runs_as_nobody(name: str) -> None:
    lines = recipe(name)
    assert [line for line in lines if "python /src/check.py" in line]
    assert "USER 10001:10001" in lines and [line for line in lines if line.startswith("ENV ") and "HOME=/tmp" in line]


def test_the_gpu_image_has_torch_with_cuda() -> None:
    lines = recipe("gpu")
    assert [line for line in lines if "requirements.py serve query triton catalog signing knowledge" in line]
    assert [line for line in lines if "check.py genrec.engines.torch" in line and "torch.version.cuda" in line]


def test_the_check_names_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MODULES", ())
    with pytest.raises(ModuleNotFoundError, match="no_such_engine"):
        check.main(["no_such_engine"])
    with pytest.raises(SystemExit, match=rf"{re.escape(sys.executable)} finds no no_such_package, nor_this"):
        check.main(["json", "--found", "json", "no_such_package", "nor_this"])
