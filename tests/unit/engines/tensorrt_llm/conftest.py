"""The test double in place of TensorRT-LLM, and a bundle exported for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genrec.bundle import Bundle
from genrec.engines import open_engine
from genrec.engines.tensorrt_llm.engine import TensorRtLlmEngine
from genrec_builders.build import build_bundle
from genrec_builders.config import BackboneShape, BuildConfig
from genrec_builders.data import Dataset
from genrec_builders.export.tensorrt_llm.export import TensorRtLlmConfig, export_tensorrt_llm

STAND_IN = Path(__file__).parent / "stand_in"
EXACT = TensorRtLlmConfig(dtype="float32", max_batch_size=8)


@pytest.fixture(scope="session")
def stand_in() -> Iterator[Any]:
    """The test double, imported as `tensorrt_llm` until the session ends."""
    sys.path.insert(0, str(STAND_IN))
    import tensorrt_llm

    assert "test.double" in tensorrt_llm.__version__
    yield tensorrt_llm
    sys.path.remove(str(STAND_IN))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]
    sys.modules.pop("genrec.engines.tensorrt_llm.modeling", None)


@pytest.fixture(scope="session")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle for TensorRT-LLM, in float32 so that answers can be compared exactly. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "tensorrt-llm"
    export_tensorrt_llm(bundle.path, path, EXACT)
    return Bundle(path)


@pytest.fixture(scope="session")
def tail_only(
    dataset: Dataset, tiny_build: tuple[BuildConfig, Any], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle whose draft head reads h_0 .. h_L alone, so that a prefix may be cached. Read-only."""
    config, track = tiny_build
    path = tmp_path_factory.mktemp("bundles") / "tail-only"
    head = replace(config.head, attention_heads=0)
    build_bundle(dataset, path, replace(config, head=head, evaluate_users=5), track)
    return Bundle(path)


@pytest.fixture(scope="session")
def exported_tail_only(tail_only: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same for TensorRT-LLM. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "tail-only-tensorrt-llm"
    export_tensorrt_llm(tail_only.path, path, EXACT)
    return Bundle(path)


@pytest.fixture(scope="session")
def llama(dataset: Dataset, tiny_build: tuple[BuildConfig, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another family, with random weights. Read-only."""
    config, track = tiny_build
    folder = tmp_path_factory.mktemp("bundles")
    shape = BackboneShape(family="llama", hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2)
    training = replace(config.training, epochs=0)
    build_bundle(dataset, folder / "llama", replace(config, shape=shape, training=training, evaluate_users=5), track)
    export_tensorrt_llm(folder / "llama", folder / "exported", EXACT)
    return Bundle(folder / "exported")


@pytest.fixture
def start(stand_in: Any, exported: Bundle) -> Iterator[Callable[..., TensorRtLlmEngine]]:
    """Starts engines on the exported bundle, or another; ends them after the test."""
    engines: list[Any] = []

    def begin(bundle: Bundle = exported, **options: Any) -> Any:
        engines.append(open_engine(bundle, "tensorrt_llm", **options))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()
