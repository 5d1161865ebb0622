"""Serves a bundle: checks it, renders its model repository, starts Triton."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genrec.bundle import PREFIXES_FORMAT, Bundle, BundleError
from genrec.catalog.published import keep_versions_s
from genrec.live.process import FollowerOptions, FollowerProcess
from genrec.serving.repository import Deployment, render_repository
from genrec.serving.triton import TritonServer


@dataclass(frozen=True)
class LiveCatalog:
    """A live catalogue to serve. location: of its store, a folder or an address as `s3://bucket/path`.

    cache: the folder that its versions are published in for the steps. storage_options: of the store, beside what the
    environment says. poll_s: seconds between two looks at the store.
    """

    location: str
    cache: Path
    storage_options: Mapping[str, str] = field(default_factory=dict)
    poll_s: float = 0.2


@contextmanager
def prepare_server(
    bundle_path: Path,
    deployment: Deployment | None = None,
    catalog: LiveCatalog | None = None,
    public_key: Path | None = None,
    **options: Any,
) -> Iterator[TritonServer]:
    """A server, not yet started, for the bundle at `bundle_path`; its rendered repository lives as long as the block.

    catalog: a live catalogue to follow meanwhile; the bundle's own if None. public_key: of whoever has to have signed
    the bundle; None takes any. options: `TritonServer`'s. Raises
    BundleError, before anything is started, if the bundle is damaged or cannot follow, and CatalogStoreError if the
    catalogue has no version to serve.
    """
    bundle = Bundle(bundle_path, public_key)
    bundle.check()
    if catalog is not None and bundle.manifest.format_version <= PREFIXES_FORMAT:
        raise BundleError(
            f"{bundle_path}: format_version is {bundle.manifest.format_version}, and only graphs from "
            f"{PREFIXES_FORMAT + 1} on follow a live catalogue; write one with `genrec export {bundle_path} OUT`"
        )
    with tempfile.TemporaryDirectory(prefix="genrec-") as scratch:
        deployment = deployment or Deployment()
        with ExitStack() as running:
            if catalog is not None:
                running.enter_context(FollowerProcess(_follower_options(bundle, deployment, catalog, public_key)))
                deployment = replace(deployment, catalog=catalog.cache)
            repository = render_repository(bundle, Path(scratch) / "models", deployment)
            yield TritonServer(repository, deployment.models, **options)


def _follower_options(
    bundle: Bundle, deployment: Deployment, catalog: LiveCatalog, public_key: Path | None
) -> FollowerOptions:
    limits = bundle.manifest.limits
    return FollowerOptions(
        location=catalog.location,
        bundle=str(bundle.path.resolve()),
        root=str(catalog.cache.resolve()),
        most_popular=limits.top_k + limits.history + limits.exclude,
        keep_s=keep_versions_s(deployment.timeout_ms),
        storage_options=catalog.storage_options,
        poll_s=catalog.poll_s,
        public_key=str(public_key.resolve()) if public_key else None,
    )


@contextmanager
def serve_bundle(
    bundle_path: Path, deployment: Deployment | None = None, catalog: LiveCatalog | None = None, **options: Any
) -> Iterator[TritonServer]:
    """A running server that is ready to recommend from the bundle at `bundle_path`; it stops with the block.

    options: `TritonServer`'s. Raises BundleError as `prepare_server`, and TritonStartError with the server's own
    error lines if it does not come up.
    """
    with prepare_server(bundle_path, deployment, catalog, **options) as server, server:
        yield server
