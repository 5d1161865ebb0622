"""Serves a bundle: checks it, renders its model repository, starts Triton."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genrec.bundle import Bundle
from genrec.serving.repository import Deployment, render_repository
from genrec.serving.triton import TritonServer


@contextmanager
def prepare_server(bundle_path: Path, deployment: Deployment | None = None, **options: Any) -> Iterator[TritonServer]:
    """A server, not yet started, for the bundle at `bundle_path`; its rendered repository lives as long as the block.

    options: `TritonServer`'s. Raises BundleError, before anything is started, if the bundle is damaged.
    """
    bundle = Bundle(bundle_path)
    bundle.check()
    with tempfile.TemporaryDirectory(prefix="genrec-") as scratch:
        deployment = deployment or Deployment()
        repository = render_repository(bundle, Path(scratch) / "models", deployment)
        yield TritonServer(repository, deployment.models, **options)


@contextmanager
def serve_bundle(bundle_path: Path, deployment: Deployment | None = None, **options: Any) -> Iterator[TritonServer]:
    """A running server that is ready to recommend from the bundle at `bundle_path`; it stops with the block.

    options: `TritonServer`'s. Raises BundleError as `prepare_server`, and TritonStartError with the server's own
    error lines if it does not come up.
    """
    with prepare_server(bundle_path, deployment, **options) as server, server:
        yield server
