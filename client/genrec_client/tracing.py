"""Spans of calls, by the OpenTelemetry of the application. Imported only where that is asked for."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from genrec_client.wire import InferRequest

_PROPAGATOR = TraceContextTextMapPropagator()


class CallSpan:
    """The span of one call with all its attempts, a child of the caller's current one.

    metadata: what carries it to the server; empty where it is not sampled, so that the server traces nothing either.
    """

    def __init__(self, message: InferRequest) -> None:
        self._span = trace.get_tracer("genrec_client").start_span(
            message.model_name,
            kind=trace.SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.method": "ModelInfer", "genrec.request_id": message.id},
        )
        carrier: dict[str, str] = {}
        if self._span.get_span_context().trace_flags.sampled:
            _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        self.metadata = tuple(carrier.items())

    def end(self, code: str, attempts: int, address: str) -> None:
        """code: the gRPC status, by name. Messages stay out: they may name values of the request."""
        self._span.set_attributes({"rpc.status": code, "genrec.attempts": attempts, "server.address": address})
        if code != "OK":
            self._span.set_status(trace.StatusCode.ERROR, code)
        self._span.end()
