"""The command line of the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from genrec.serving.triton.launch import ARRIVED
from genrec.serving.triton.tls import ServerTls

SERVICE = "genrec"  # in traces
# What changes the server, or reads its memory. `load` runs Python code that a client sends.
_CLOSED = "shared-memory,model-repository,trace,logging"


def server_flags(
    repository: Path,
    models: Sequence[str],
    *,
    backends: Path,
    host: str,
    ports: Mapping[str, int],
    sockets: Path | None,
    tls: ServerTls | None,
    exit_timeout: float,
    auto_complete: bool,
    shm_prefix: str,
    shm_bytes: int,
) -> list[str]:
    """The arguments of `tritonserver`, which loads `models` alone.

    repository: as `plain_name` gives it. backends: as `prepare_backends` does. ports: by endpoint, without those that
    are switched off; with `sockets`, gRPC's is a part of its socket's name. The rest is explained at `TritonServer`.
    Raises TritonStartError for a TLS file that cannot be read.
    """
    flags = {
        "model-repository": repository,
        "backend-directory": backends,
        "model-control-mode": "explicit",
        "exit-on-error": "true",
        "strict-readiness": "true",
        "exit-timeout-secs": max(1, round(exit_timeout)),
    }
    flags |= _endpoint_flags(host, ports, sockets)
    # Open only to who knows a word that nobody is told.
    word = secrets.token_hex(16)
    flags |= dict.fromkeys(("grpc-restricted-protocol", "http-restricted-api"), f"{_CLOSED}:genrec-closed={word}")
    if tls is not None:
        flags |= tls.flags()
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    if not auto_complete:
        arguments.append("--disable-auto-complete-config")
    arguments += [f"--load-model={model}" for model in models]
    shared_memory = {
        "shm-region-prefix-name": shm_prefix,
        "shm-default-byte-size": shm_bytes,
        "shm-growth-byte-size": shm_bytes,
    }
    return arguments + [f"--backend-config=python,{name}={value}" for name, value in shared_memory.items()]


def trace_flags(collector: str, one_in: int = 0) -> list[str]:
    """More flags, for Triton's own OpenTelemetry traces: a span for each request, each step and its computing.

    collector: of OTLP over HTTP, as http://collector:4318. one_in: of how many requests without a `traceparent` one is
    traced; 0 for none. Raises ValueError for what is no such address.
    """
    parts = urlsplit(collector)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{collector!r} is no address of a collector; give one such as http://collector:4318")
    path = parts.path.rstrip("/") or "/v1/traces"
    settings = (
        *("mode=opentelemetry", f"rate={one_in}", "level=TIMESTAMPS"),
        f"opentelemetry,url={parts.scheme}://{parts.netloc}{path}",
        f"opentelemetry,resource=service.name={SERVICE}",
    )
    return [f"--trace-config={setting}" for setting in settings]


def _endpoint_flags(host: str, ports: Mapping[str, int], sockets: Path | None) -> dict[str, object]:
    flags: dict[str, object] = {
        "grpc-address": host,
        "grpc-port": ports["grpc"],
        "allow-http": str("http" in ports).lower(),
        "allow-metrics": str("metrics" in ports).lower(),
    }
    for endpoint in ("http", "metrics"):
        if endpoint in ports:
            flags |= {f"{endpoint}-address": host, f"{endpoint}-port": ports[endpoint]}
    if sockets is not None:
        flags |= {"grpc-address": f"unix:{sockets}/grpc", "http-address": f"unix:{sockets}/http"}
        # As a parameter of the request. Without a front the client would be believed.
        flags |= dict.fromkeys(("grpc-header-forward-pattern", "http-header-forward-pattern"), f"^{ARRIVED}$")
    return flags
