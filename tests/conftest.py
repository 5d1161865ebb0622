"""Shared fixtures: one small bundle, built as a user would build it, and one server on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genrec.bundle import Bundle
from genrec.bundle.checkpoint_shapes import HeadShape
from genrec.prompt import Limits
from genrec.reporting.progress import Track
from genrec_builders.build import build_bundle
from genrec_builders.config import BackboneShape, BuildConfig, TrainingConfig
from genrec_builders.data import Dataset
from genrec_builders.data.demo_shop import make_demo_shop

TINY = BuildConfig(
    levels=(16, 16, 16),
    beam_width=64,
    limits=Limits(top_k=30, exclude=50, history=200),
    shape=BackboneShape(hidden_size=32, intermediate_size=96, layers=2),
    head=HeadShape(24, 48),
    training=TrainingConfig(epochs=2, tokens_per_batch=4096),
)


@contextlib.contextmanager
def silent(title: str) -> Iterator:
    yield lambda done, total, note: None


@pytest.fixture(scope="session")
def tiny_build() -> tuple[BuildConfig, Track]:
    """The configuration of the small bundle, and a progress bar that shows nothing."""
    return TINY, silent


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """400 items whose semantic IDs collide often, 400 users."""
    return make_demo_shop(n_items=400, n_users=400, seed=0)


@pytest.fixture(scope="session")
def bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A trained and exported bundle. Read-only: copy it before you damage it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    build_bundle(dataset, path, TINY, silent)
    return Bundle(path)


@pytest.fixture(scope="session")
def baseline(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same shop decoded by beam search. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "baseline"
    training = replace(TINY.training, epochs=6, tokens_per_batch=1024, learning_rate=3e-3, seed=1)
    build_bundle(dataset, path, replace(TINY, decoder="beam_search", training=training, validation_users=50), silent)
    return Bundle(path)


@pytest.fixture(scope="session")
def text_bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same shop's bundle, trained with its queries. Read-only."""
    path = tmp_path_factory.mktemp("bundles") / "text"
    limits = Limits(top_k=30, exclude=50, history=200, query_bytes=200)
    training = replace(TINY.training, epochs=6, tokens_per_batch=1024, learning_rate=3e-3)
    build_bundle(dataset, path, replace(TINY, max_query=8, limits=limits, training=training), silent)
    return Bundle(path)


@pytest.fixture(scope="session")
def knowledge_folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's knowledge folder, its model trained for seconds: its texts only look like texts. Read-only."""
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
