"""The command line of the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from genrec.serving.triton.tls import ServerTls

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
    if "metrics" in ports:
        flags["metrics-config"] = "summary_latencies=true"
    if sockets is not None:
        flags |= {"grpc-address": f"unix:{sockets}/grpc", "http-address": f"unix:{sockets}/http"}
    return flags
