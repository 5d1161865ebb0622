"""TLS of the server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genrec.serving.triton.errors import TritonStartError


@dataclass(frozen=True)
class ServerTls:
    """TLS of the gRPC endpoint, PEM files. Triton's HTTP endpoint has none: keep it inside, for health checks.

    cert, key: the server's certificate chain and its private key. client_ca: with it, clients must bring a certificate
    that it signed.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def flags(self) -> dict[str, object]:
        """`tritonserver` flags. Raises TritonStartError for a file that cannot be read."""
        for path in filter(None, (self.cert, self.key, self.client_ca)):
            if not os.access(path, os.R_OK):
                raise TritonStartError(f"the TLS file {path} is missing or not readable")
        files = {"grpc-use-ssl": "true", "grpc-server-cert": self.cert, "grpc-server-key": self.key}
        if self.client_ca is None:
            return files
        return files | {"grpc-use-ssl": "false", "grpc-use-ssl-mutual": "true", "grpc-root-cert": self.client_ca}
