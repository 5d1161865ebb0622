"""Bundles of other kinds, and the test double in place of TensorRT-LLM."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from genrec.bundle import Bundle
from tests.tensorrt_llm_double import STAND_IN, exported_for_double

if TYPE_CHECKING:
    from genrec.engines.tensorrt_llm.engine import TensorRtLlmEngine
    from genrec.reporting.progress import Track
    from genrec_builders.config import BuildConfig
    from genrec_builders.data import Dataset


@pytest.fixture
def run_genrec(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `genrec` in this process: its exit status, and what it wrote to standard error."""
    from genrec.cli.main import main

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, capsys.readouterr().err

    return run


@pytest.fixture(scope="session")
def baseline(
    dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The small shop decoded by beam search. Read-only."""
    from genrec_builders.build import build_bundle

    config, track = tiny_build
    path = tmp_path_factory.mktemp("bundles") / "baseline"
    training = replace(config.training, epochs=6, tokens_per_batch=1024, learning_rate=3e-3, seed=1)
    config = replace(config, decoder="beam_search", training=training, validation_users=50)
    build_bundle(dataset, path, config, track)
    return Bundle(path)


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
    """The small bundle for TensorRT-LLM. Read-only."""
    return exported_for_double(bundle, tmp_path_factory.mktemp("bundles") / "tensorrt-llm", max_batch_size=8)


@pytest.fixture(scope="session")
def tail_only(
    dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle whose draft head reads h_0 .. h_L alone, so that a prefix may be cached. Read-only."""
    from genrec_builders.build import build_bundle

    config, track = tiny_build
    path = tmp_path_factory.mktemp("bundles") / "tail-only"
    head = replace(config.head, attention_heads=0)
    build_bundle(dataset, path, replace(config, head=head, evaluate_users=5), track)
    return Bundle(path)


@pytest.fixture(scope="session")
def exported_tail_only(tail_only: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same for TensorRT-LLM. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "tail-only-tensorrt-llm"
    return exported_for_double(tail_only, path, max_batch_size=8)


@pytest.fixture(scope="session")
def llama(dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another family for TensorRT-LLM, with random weights. Read-only."""
    from genrec_builders.build import build_bundle
    from genrec_builders.config import BackboneShape

    config, track = tiny_build
    folder = tmp_path_factory.mktemp("bundles")
    shape = BackboneShape(family="llama", hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2)
    training = replace(config.training, epochs=0)
    build_bundle(dataset, folder / "llama", replace(config, shape=shape, training=training, evaluate_users=5), track)
    return exported_for_double(Bundle(folder / "llama"), folder / "exported", max_batch_size=8)


@pytest.fixture
def start(stand_in: Any, exported: Bundle) -> Iterator[Callable[..., TensorRtLlmEngine]]:
    """Starts engines on the exported bundle, or another; ends them after the test."""
    from genrec.engines import open_engine

    engines: list[Any] = []

    def begin(bundle: Bundle = exported, **options: Any) -> Any:
        engines.append(open_engine(bundle, "tensorrt_llm", **options))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()
