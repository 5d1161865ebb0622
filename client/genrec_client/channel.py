"""gRPC channels to the servers."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import grpc

from genrec_client.arguments import require_flag

Channel: TypeAlias = Any

_HOST_PORT = re.compile(r"(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(:(?P<port>[0-9]{1,5}))?")
# Other gRPC targets, such as dns:///name:8001 and unix:/run/socket, are gRPC's to judge, and so are IPv6 addresses.
_TARGET = re.compile(r"(dns|unix|unix-abstract|vsock|ipv4|ipv6|xds):.+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*")

_OPTIONS: dict[str, object] = {
    # A name that resolves to several addresses (a headless Service) is spread over all of them.
    "grpc.lb_policy_name": "round_robin",
    # gRPC's defaults (1 s at first, up to 120 s) would keep a server that is back unreachable for long.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 5_000,
    # The time for one connection attempt. Until the first one fails, requests to a dead address wait for it.
    "grpc.min_reconnect_backoff_ms": 1_000,
}


@dataclass(frozen=True)
class TlsOptions:
    """PEM files for an encrypted connection; None is gRPC's own choice.

    ca_file: certificates that the server's is checked against, the system's by default. cert_file, key_file: the
    client's certificate chain and private key, for mutual TLS.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, (str, os.PathLike)) or not os.fspath(value)):
                raise ValueError(f"{name} is {value!r}; give the path of a PEM file")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("mutual TLS takes both cert_file and key_file")

    def credentials(self) -> Any:
        """The channel credentials; OSError when a file cannot be read."""
        ca, cert, key = (
            None if path is None else Path(path).read_bytes() for path in (self.ca_file, self.cert_file, self.key_file)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)


def split_urls(urls: str | Iterable[str], *, tls: bool = False) -> tuple[str, ...]:
    """The addresses of a list, or of one string with commas between them.

    tls: whether they are for TLS, where an address without a port stands for port 443. Raises ValueError for no
    address, one of another protocol, and what is no address.
    """
    if isinstance(urls, bytes) or not isinstance(urls, Iterable):
        raise ValueError(f"the addresses are {urls!r}; give text such as localhost:8001, or a list of such")
    parts = urls.split(",") if isinstance(urls, str) else list(urls)
    if wrong := [part for part in parts if not isinstance(part, str)]:
        raise ValueError(f"the addresses hold {wrong[0]!r}; give text, host:port of the server's gRPC port")
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise ValueError(f"no address in {urls!r}; give host:port of the server's gRPC port, such as localhost:8001")
    for address in addresses:
        if address.startswith(("http://", "https://", "grpc://", "grpcs://")):
            raise ValueError(f"{address!r} is a URL with a scheme; give host:port of the server's gRPC port")
        if _TARGET.fullmatch(address):
            continue
        found = _HOST_PORT.fullmatch(address)
        if found is None or (found["port"] is None and not tls):
            raise ValueError(f"{address!r} is no address; give host:port of the server's gRPC port")
        if found["port"] is not None and not 0 < int(found["port"]) < 65536:
            raise ValueError(f"{address!r} has port {found['port']}; give host:port with a port of 1 to 65535")
    return addresses


class ChannelOpener:
    """Opens the channels of one client. The TLS files are read here, once.

    tls: True for TLS with the system's certificates. options: gRPC channel arguments, which go before the client's own
    choices. Raises ValueError for what is none of these, and OSError for a TLS file that cannot be read.
    """

    def __init__(self, tls: bool | TlsOptions, options: Sequence[tuple[str, object]] = ()) -> None:
        if not isinstance(tls, TlsOptions):
            require_flag("tls", tls)
        self._options = list({**_OPTIONS, **dict(options)}.items())
        self._credentials = None
        if tls:
            self._credentials = (tls if isinstance(tls, TlsOptions) else TlsOptions()).credentials()

    def open(self, url: str, library: ModuleType = grpc) -> Channel:
        """A channel to one address. It connects with the first request.

        url: host:port, or any gRPC target such as "dns:///name:8001". library: `grpc`, or `grpc.aio` for the running
        event loop.
        """
        if self._credentials is None:
            return library.insecure_channel(url, options=self._options)
        return library.secure_channel(url, self._credentials, options=self._options)
