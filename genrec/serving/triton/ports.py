"""The ports that the server listens on."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from genrec.serving.triton.errors import TritonStartError


def choose_ports(host: str, wanted: Mapping[str, int | None]) -> dict[str, int]:
    """A port for each endpoint that is switched on.

    wanted: port by endpoint; 0 picks a free one, None switches the endpoint off. Raises TritonStartError for a port
    that is asked for twice or in use.
    """
    ports: dict[str, int] = {}
    for endpoint, port in wanted.items():
        if port is None:
            continue
        if port == 0:
            while (port := _free_port(host)) in (*ports.values(), *wanted.values()):
                pass
        elif port in ports.values():
            raise TritonStartError(f"{endpoint} port {port} is asked for twice")
        else:
            _check_unused(host, endpoint, port)
        ports[endpoint] = port
    return ports


def _free_port(host: str) -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise TritonStartError(
                f"cannot listen on {host}: {error.strerror}; give an address of this machine"
            ) from None
        return int(probe.getsockname()[1])


def _check_unused(host: str, endpoint: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TritonStartError(
                f"cannot listen on {host}:{port} for {endpoint}: {error.strerror}; "
                f"choose another {endpoint} port, or 0 for a free one"
            ) from None
