"""A receiver of OTLP traces over HTTP, made from the package opentelemetry-proto: no collector.

It takes what a collector would: what does not fit OTLP's own message is refused with 400, and kept as an error.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Received:
    """What came so far. spans: OTLP's own messages. bodies: as they came. errors: what was refused, and why."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.bodies: list[bytes] = []
        self.errors: list[str] = []
        self.address = ""

    def take(self, kind: str, body: bytes) -> None:
        """Raises ValueError for what is no OTLP."""
        message = ExportTraceServiceRequest()
        if kind == "application/json":
            json_format.ParseDict(json.loads(body, object_hook=_ids_as_protobuf_has_them), message)
        elif kind == "application/x-protobuf":
            message.ParseFromString(body)
        else:
            raise ValueError(f"content-type {kind!r}")
        for of_resource in message.resource_spans:
            self.services |= {a.value.string_value for a in of_resource.resource.attributes if a.key == "service.name"}
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        self.bodies.append(body)

    def of_trace(self, trace_id: int, enough: Callable[[list[Any]], bool], patience_s: float = 10.0) -> list[Any]:
        """The spans of a trace, once they are enough."""
        until = time.monotonic() + patience_s
        while True:
            found = [span for span in self.spans if span.trace_id == trace_id.to_bytes(16, "big")]
            if enough(found):
                return found
            assert time.monotonic() < until, f"{[span.name for span in found]}; refused: {self.errors}"
            time.sleep(0.05)


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes, as text or whole numbers."""
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def _ids_as_protobuf_has_them(found: dict[str, Any]) -> dict[str, Any]:
    """OTLP's JSON has ids in hexadecimal digits, and protobuf's own in base64."""
    ids = {key: base64.b64encode(bytes.fromhex(found[key])).decode() for key in found if key.lower().endswith("spanid")}
    if "traceId" in found:
        ids["traceId"] = base64.b64encode(bytes.fromhex(found["traceId"])).decode()
    return found | ids


@contextmanager
def otlp_receiver() -> Iterator[Received]:
    """A receiver on a free port of this machine, at `address`."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path != "/v1/traces":
                    raise ValueError(f"path {self.path}")
                received.take(self.headers.get_content_type(), body)
                status = 200
            except (ValueError, json_format.Error) as error:
                received.errors.append(f"{error}: {body[:500]!r}")
                status = 400
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
