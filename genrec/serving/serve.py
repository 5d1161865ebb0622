"""Serves a bundle: checks it, renders its model repository, starts Triton."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genrec.bundle import Bundle
from genrec.serving.repository import MODEL, Deployment, render_repository
from genrec.serving.triton import TritonServer


@contextmanager
def serve_bundle(
    bundle_path: Path,
    deployment: Deployment | None = None,
    host: str = "127.0.0.1",
    grpc_port: int = 0,
    http_port: int = 0,
    metrics_port: int = 0,
    log_path: Path | None = None,
) -> Iterator[TritonServer]:
    """A running server that is ready to recommend from the bundle at `bundle_path`; stops it in the end.

    Raises BundleError before anything is started if the bundle is damaged, TritonStartError with the server's own
    error lines if it does not come up.
    """
    bundle = Bundle(bundle_path)
    bundle.check()
    with tempfile.TemporaryDirectory(prefix="genrec-") as scratch:
        repository = render_repository(bundle, Path(scratch) / "models", deployment or Deployment())
        server = TritonServer(
            repository,
            [MODEL],
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            log_path=log_path,
        )
        with server:
            yield server
