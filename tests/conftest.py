"""Options, markers and the fixtures of more than one room: a small shop, and bundles built as a user would build them.

Nothing heavy is imported here: a fixture imports what it needs, so that tests of what only needs numpy start at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from genrec.bundle import Bundle

if TYPE_CHECKING:
    from genrec.reporting.progress import Track
    from genrec_builders.config import BuildConfig
    from genrec_builders.data import Dataset

# Models as small as the tests' gain nothing from a second thread, and on a busy machine its waiting costs the most.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is up to the machine, and the examples are the same every time: a change is judged by what
# it changes. `random` looks for new ones. `few` is for `make test-fast`, and for a test that runs other tests.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", settings.get_profile("default"), derandomize=False)
settings.register_profile("few", settings.get_profile("default"), max_examples=10)
settings.load_profile("default")

# Whoever asks for one of these, through other fixtures too, waits for a training.
TRAINED = {"bundle", "voting_bundle", "baseline", "text_bundle", "tail_only", "llama", "knowledge_folder"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-triton",
        action="store_true",
        help="skip tests/integration, which fails where there is no Triton server",
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker("training")


def pytest_collection_finish() -> None:
    # What was imported until here stays, and the collector need not go through it again and again.
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def silent(title: str) -> Iterator:
    yield lambda done, total, note: None


@pytest.fixture(scope="session")
def tiny_build() -> tuple[BuildConfig, Track]:
    """The configuration of the small bundle, and a progress bar that shows nothing."""
    from genrec.bundle.checkpoint_shapes import HeadShape
    from genrec.prompt import Limits
    from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig

    config = BuildConfig(
        levels=(16, 16, 16),
        beam_width=64,
        limits=Limits(top_k=30, exclude=50, history=200),
        shape=BackboneShape(hidden_size=32, intermediate_size=96, layers=2),
        head=HeadShape(24, 48),
        training=TrainingConfig(epochs=2, tokens_per_batch=4096),
    )
    return config, silent


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """400 items whose semantic IDs collide often, 400 users."""
    from genrec_builders.data.demo_shop import make_demo_shop

    return make_demo_shop(n_items=400, n_users=400, seed=0)


@pytest.fixture(scope="session")
def bundle(dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A trained and exported bundle. Read-only: copy it before you damage it."""
    from genrec_builders.build import build_bundle

    path = tmp_path_factory.mktemp("bundles") / "tiny"
    build_bundle(dataset, path, *tiny_build)
    return Bundle(path)


@pytest.fixture(scope="session")
def voting_bundle(bundle: Bundle, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with votes. Read-only."""
    from genrec_builders.votes import add_votes

    path = tmp_path_factory.mktemp("bundles") / "votes"
    add_votes(bundle.path, path, dataset, silent, validation_users=100, evaluate_users=50)
    return Bundle(path)


@pytest.fixture(scope="session")
def text_bundle(
    dataset: Dataset, tiny_build: tuple[BuildConfig, Track], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The same shop's bundle, trained with its queries. Read-only."""
    from genrec_builders.build import build_bundle

    config, track = tiny_build
    path = tmp_path_factory.mktemp("bundles") / "text"
    limits = config.limits.model_copy(update={"query_bytes": 200})
    training = replace(config.training, epochs=6, tokens_per_batch=1024, learning_rate=3e-3)
    build_bundle(dataset, path, replace(config, max_query=8, limits=limits, training=training), track)
    return Bundle(path)


@pytest.fixture(scope="session")
def knowledge_folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's knowledge folder, its model trained for seconds: its texts only look like texts. Read-only."""
    from genrec_builders.config import TrainingConfig
    from genrec_builders.knowledge.folder import build_folder
    from genrec_builders.knowledge.language_model import LanguageModelConfig

    training = TrainingConfig(epochs=2, learning_rate=5e-3, dropout=0.0, tokens_per_batch=512)
    config = LanguageModelConfig(texts=300, vocabulary=1500, hidden_size=64, layers=1, training=training)
    path = tmp_path_factory.mktemp("knowledge") / "tiny"
    build_folder(dataset, path, config=config, own_texts=16)
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def bundle_copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the small bundle to damage."""
    import shutil

    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))
