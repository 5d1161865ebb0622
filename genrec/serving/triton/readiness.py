"""Asks a server whether it, or one of its models, is ready."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Callable, Iterator
from typing import TypeAlias

# Whether a model, or with "" the server, is ready.
IsReady: TypeAlias = Callable[[str], bool]


@contextlib.contextmanager
def grpc_readiness(url: str) -> Iterator[IsReady]:
    """Asks the gRPC endpoint at `url`, "host:port", without TLS."""
    import tritonclient.grpc
    from tritonclient.utils import InferenceServerException

    # Own channel arguments: the default pauses between connection attempts grow to many seconds.
    channel = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    client = tritonclient.grpc.InferenceServerClient(url, channel_args=channel)

    def is_ready(model: str) -> bool:
        try:
            if model:
                return client.is_model_ready(model, client_timeout=1.0)
            return client.is_server_ready(client_timeout=1.0)
        except InferenceServerException:
            return False

    with contextlib.closing(client):
        yield is_ready


@contextlib.contextmanager
def http_readiness(url: str) -> Iterator[IsReady]:
    """Asks the HTTP endpoint at `url`, "host:port"."""
    yield lambda model: _answers(f"http://{url}/v2/{f'models/{model}' if model else 'health'}/ready")


def _answers(url: str) -> bool:
    """Whether a GET of `url` is answered with status 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False
