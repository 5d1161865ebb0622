"""Whether a server should get requests, for a load balancer: it is ready, and its catalogue is not too old."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from genrec.live.status import Status

_PATH = "/ready"
_WAIT_S = 2.0


def not_ready(triton_http: str, root: Path | None, max_lag_s: float) -> str:
    """Why the server should not get requests, "" if it should.

    triton_http: host:port of Triton's own HTTP endpoint. root: the folder of a live catalogue, of which what is served
    may be up to max_lag_s seconds old.
    """
    try:
        with urllib.request.urlopen(f"http://{triton_http}/v2/health/ready", timeout=_WAIT_S):
            pass
    except OSError as error:
        return f"the server is not ready: {error}"
    if root is None:
        return ""
    try:
        status = Status.load(root)
    except (OSError, ValueError, TypeError) as error:
        return f"the catalogue's follower has not said how it is: {error}"
    lag = status.lag_s(time.time())
    if lag > max_lag_s:
        why = f": {status.problem}" if status.problem else ""
        return f"the catalogue is {lag:.1f} s behind its store, at most {max_lag_s:g} s are allowed{why}"
    return ""


@contextmanager
def readiness_endpoint(host: str, port: int, why_not: Callable[[], str]) -> Iterator[int]:
    """Answers GET /ready on host:port with 200, or with 503 and the reason that `why_not` gives.

    port: 0 picks a free one. Yields the port.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reason = why_not() if self.path == _PATH else f"ask for {_PATH}"
            found = HTTPStatus.SERVICE_UNAVAILABLE if self.path == _PATH else HTTPStatus.NOT_FOUND
            body = f"{reason or 'ready'}\n".encode()
            self.send_response(found if reason else HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass  # a probe every few seconds is no news

    server = ThreadingHTTPServer((host, port), Handler)
    thread = Thread(target=server.serve_forever, name="readiness", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
