"""What the front passes, as HAProxy's configuration."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from genrec.errors import TOO_MANY
from genrec.serving.triton.errors import TritonStartError
from genrec.serving.triton.launch import ARRIVED
from genrec.serving.triton.tls import ServerTls

CONFIG = "haproxy.cfg"
MAX_REQUEST_BYTES = 1 << 20  # 10,000 ids of 80 bytes, and rules of 64 KiB
INSPECT = Path(__file__).with_name("inspect.lua")
_HEADERS = 1 << 16  # room in a buffer beside a body
# Of a gRPC call. From 8 KiB on gRPC refuses some, and ends with them now and then what others sent by the connection.
MAX_HEADER_BYTES = 1 << 12
_WAIT_S = 10  # for the whole of a request
_IDLE = "1h"  # of connections, and of streams between two messages

_SERVICE = "/inference.GRPCInferenceService"
# What asks and changes nothing, about any model: load generators ask the steps for their configuration.
GRPC_ASKED = (
    *(f"{_SERVICE}/Server{name}" for name in ("Live", "Ready", "Metadata")),
    *(f"{_SERVICE}/Model{name}" for name in ("Ready", "Metadata", "Config", "Statistics")),
    "/grpc.health.v1.Health/Check",
)
HTTP_ASKED = (
    "^/v2(/health/(live|ready)|/models/stats|/models/[A-Za-z0-9_.-]+(/versions/[0-9]+)?(/(ready|config|stats))?)?/?$"
)
# Of these, what stays open to who has no token: probes have none.
GRPC_OPEN = (*(f"{_SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady")), GRPC_ASKED[-1])
HTTP_OPEN = "^/v2/(health/(live|ready)|models/[A-Za-z0-9_.-]+(/versions/[0-9]+)?/ready)/?$"
NO_TOKEN = "a token that is known here is missing; send it as authorization: Bearer TOKEN"
# HAProxy's own errors as gRPC says them: its status, and text.
_GRPC_ERRORS = {
    400: (3, "the request cannot be read"),
    408: (4, f"the request was not whole after {_WAIT_S} s"),
    500: (14, "the front failed"),
    502: (14, "the server ended while it answered"),
    503: (14, "the server is not there"),
    504: (14, "the server does not answer"),
}
# A message that protobuf refuses, and the front does not; gRPC calls it INTERNAL.
_UNREADABLE = "Unable to parse request"
# What is measured begins here. Whatever a client says of it is replaced.
_ARRIVED = f"    http-request set-header {ARRIVED} %[date(0,us)] if infer"
# Triton traces whatever brings a context, also one that its client does not want to be traced: without bit 0.
_NOT_TRACED = (
    "    http-request del-header traceparent unless { req.hdr(traceparent) -m reg "
    "^[0-9a-f][0-9a-f]-[0-9a-f]+-[0-9a-f]+-[0-9a-f][13579bdf] }"
)
_TOO_LONG = "string correlation ID"  # a sequence id, which Triton calls unimplemented
_TOO_MANY_ROWS = "max allowed is"  # requests in one: their number is cut to 32 bits where they are first counted
# Triton 2.51 blames itself for what a client wrote.
_BLAMED = (
    '{"error":"(Unable to (parse|set)|failed to parse|failed to get request params|'
    f"{_TOO_LONG}|in ensemble .*batch size [0-9]+ for .*{_TOO_MANY_ROWS})"
)


def write_config(
    folder: Path,
    *,
    sockets: Mapping[str, Path],
    host: str,
    ports: Mapping[str, int],
    model: str,
    streaming: str | None,
    tls: ServerTls | None,
    max_request_bytes: int,
    tokens: Mapping[str, str] | None = None,
) -> Path:
    """Writes HAProxy's configuration and the files that it names into `folder`; gives its path.

    sockets: Triton's, by endpoint. host, ports: what to listen on; endpoints are grpc, http and, if it is wanted,
    metrics, the front's own. model: that ModelInfer reaches; streaming: that ModelStreamInfer does, None if none.
    tls: of gRPC. max_request_bytes: of one message. tokens: names of clients by the SHA-256 of their token; without
    one that is known a client may only ask whether the server is there. None lets everybody in.
    Raises TritonStartError for a TLS file that cannot be read.
    """
    for code, (status, text) in _GRPC_ERRORS.items():
        headers = f"content-type: application/grpc\r\ngrpc-status: {status}\r\ngrpc-message: {text}\r\n"
        (folder / f"{code}.http").write_bytes(f"HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n".encode())
    known = None
    if tokens is not None:
        known = folder / "tokens.map"
        known.touch(0o600)
        known.write_text("".join(f"{digest} {name}\n" for digest, name in tokens.items()))
    bind = _bind(folder, host, ports["grpc"], tls)
    lines = [*_globals(max_request_bytes)]
    lines += _grpc(sockets["grpc"], bind, model, streaming, max_request_bytes, folder, known)
    lines += _http(sockets["http"], f"{host}:{ports['http']}", model if tls is None else None, max_request_bytes, known)
    if "metrics" in ports:
        lines += _metrics(f"{host}:{ports['metrics']}")
    config = folder / CONFIG
    config.write_text("\n".join(lines) + "\n")
    return config


def _globals(most: int) -> list[str]:
    return [
        "global",
        "    fd-hard-limit 16384",
        "    nbthread 1",  # the shared Lua state has one lock; one thread passes far more than a model answers
        f"    lua-load {INSPECT}",
        f"    tune.bufsize {most + 5 + _HEADERS}",
        "    tune.h2.initial-window-size 1048576",
        "    tune.h2.max-frame-size 16384",
        "    tune.h2.max-concurrent-streams 1000",
        "defaults",
        "    mode http",
        "    option http-no-delay",
        "    option abortonclose",
        "    retries 0",
        "    timeout connect 1s",
        f"    timeout http-request {_WAIT_S}s",
        f"    timeout http-keep-alive {_IDLE}",
        f"    timeout client {_IDLE}",
        f"    timeout server {_IDLE}",
    ]


def _bind(folder: Path, host: str, port: int, tls: ServerTls | None) -> str:
    """The gRPC endpoint's. HAProxy wants a certificate's key beside it, under a name made of its own."""
    if tls is None:
        return f"{host}:{port} proto h2"
    tls.flags()  # names files that cannot be read
    try:
        shutil.copyfile(tls.cert, folder / "cert.pem")
        key = folder / "cert.pem.key"
        key.touch(0o600)
        shutil.copyfile(tls.key, key)
        clients = ""
        if tls.client_ca is not None:
            shutil.copyfile(tls.client_ca, folder / "clients.pem")
            clients = f" ca-file {folder / 'clients.pem'} verify required"
    except OSError as error:
        raise TritonStartError(f"a TLS file cannot be read: {error}") from None
    return f"{host}:{port} ssl crt {folder / 'cert.pem'} alpn h2 proto h2{clients}"


def _refused_call(status: str, why: str, condition: str) -> str:
    return f'    http-request return status 200 hdr grpc-status {status} hdr grpc-message "{why}" {condition}'


def _known(tokens: Path | None) -> list[str]:
    """Tells who asks, by the token's hash: how long it takes to look that up says nothing of the token itself."""
    if tokens is None:
        return ["    acl known always_true"]
    return [
        f"    http-request set-var(txn.client) http_auth_bearer,sha2(256),hex,lower,map_str({tokens})",
        "    acl known var(txn.client) -m found",
        "    http-request del-header authorization",  # nobody behind the front needs it
    ]


def _grpc(
    socket: Path, bind: str, model: str, streaming: str | None, most: int, folder: Path, tokens: Path | None
) -> list[str]:
    server = f"    server triton unix@{socket} proto h2"
    lines = [
        "frontend grpc",
        f"    bind {bind}",
        *(f"    errorfile {code} {folder / f'{code}.http'}" for code in _GRPC_ERRORS),
        f"    acl infer path {_SERVICE}/ModelInfer",
        f"    acl asked path {' '.join(GRPC_ASKED)}",
        f"    acl streams path {_SERVICE}/ModelStreamInfer",
        f"    acl open path {' '.join(GRPC_OPEN)}",
        "    acl grpc req.hdr(content-type) -m beg application/grpc",
        *_known(tokens),
        # A refusal has no body, and HAProxy gives it no type by itself.
        "    http-after-response set-header content-type application/grpc unless { res.fhdr_cnt(content-type) gt 0 }",
        # With it Triton ends a stream by the status of what failed, and sometimes itself.
        "    http-request del-header triton_grpc_error",
        _NOT_TRACED,
        # HAProxy 2.6 loses an answer that it gives before the end of a request. Of a stream there may be none.
        f"    http-request wait-for-body time {_WAIT_S}s if !streams",
    ]
    if streaming is None or tokens is not None:
        lines.append(f"    http-request wait-for-body time 100ms if streams{' !known' if streaming else ''}")
    lines.append(_refused_call("16", NO_TOKEN, "unless known or open"))
    if streaming is None:
        lines.append(_refused_call("7", "this call is closed here", "unless infer or asked"))
    else:
        lines.append(_refused_call("7", "this call is closed here", "unless infer or asked or streams"))
    lines += [
        _refused_call("3", "this is no gRPC call", "unless METH_POST grpc"),
        _refused_call(
            "8",
            f"the headers have more than {MAX_HEADER_BYTES} bytes",
            f"if {{ req.hdrs -m len {MAX_HEADER_BYTES + 1}: }}",
        ),
        _refused_call("12", "compressed requests are closed here", "if { req.fhdr_cnt(content-encoding) gt 0 }"),
        _ARRIVED,
        f"    http-request lua.genrec_call {most} {model} if infer",
        f"    http-request lua.genrec_call {most} - if asked",
        _refused_call("%[var(txn.status)]", "%[var(txn.why)]", "if { var(txn.why) -m found }"),
        _refused_call("8", f"at most {most} bytes are accepted", "if asked { var(txn.large) -m bool }"),
        "    use_backend grpc_large if infer { var(txn.large) -m bool }",
        *(["    use_backend grpc_streams if streams"] if streaming else []),
        "    default_backend grpc",
        "backend grpc",
        "    http-reuse always",
        f"    acl unreadable res.fhdr(grpc-message) -m str '{_UNREADABLE}'",
        "    http-response set-header grpc-status 3 if unreadable { res.fhdr(grpc-status) 13 }",
        "    http-response set-header grpc-message 'the message cannot be read' if unreadable",
        "    http-response set-header grpc-status 3 if { res.hdr(grpc-status) 12 } "
        f"{{ res.hdr(grpc-message) -m sub '{_TOO_LONG}' }}",
        "    http-response set-header grpc-status 3 if { res.hdr(grpc-status) 13 } "
        f"{{ res.hdr(grpc-message) -m sub '{_TOO_MANY_ROWS}' }}",
        # UNAVAILABLE, which a Python model has to say, is sent again by proxies and clients; RESOURCE_EXHAUSTED is not.
        f"    http-response set-header grpc-status 8 if {{ res.hdr(grpc-status) 14 }} "
        f'{{ res.hdr(grpc-message) -m sub -i "{TOO_MANY}" }}',
        server,
        # A message that is too large is read to its end, and Triton gets one that says so.
        "backend grpc_large",
        f"    filter lua.genrec_stream {most} {model}",
        server,
    ]
    if streaming:
        lines += ["backend grpc_streams", f"    filter lua.genrec_stream {most} {streaming}", server]
    return lines


def _refused(status: int, why: str, condition: str, headers: str = "") -> str:
    body = f'{{"error":"{why}"}}'.replace('"', r"\"")
    kind = "lf-string" if "%[" in why else "string"
    return f'    http-request return status {status} content-type application/json {kind} "{body}" {headers}{condition}'


def _http(socket: Path, address: str, model: str | None, most: int, tokens: Path | None) -> list[str]:
    """model: None if there is nothing but questions, because gRPC is encrypted and this is not."""
    infer = f"    acl infer path -m reg ^/v2/models/{model}(/versions/[0-9]+)?/infer$"
    return [
        "frontend http",
        f"    bind {address}",
        infer if model else "    acl infer always_false",
        f"    acl asked path -m reg {HTTP_ASKED}",
        f"    acl open path -m reg {HTTP_OPEN}",
        f"    acl large req.body_size gt {most}",
        *_known(tokens),
        _refused(401, NO_TOKEN, "unless known or open METH_GET", "hdr WWW-Authenticate Bearer "),
        "    http-request del-header upgrade",
        _NOT_TRACED,
        _refused(403, "this call is closed here", "unless infer METH_POST or asked METH_GET"),
        _refused(413, f"the body has more than {most} bytes", "if large"),
        _refused(400, "this call has no body", "if asked { req.body_size gt 0 }"),
        _refused(400, "this call has no body", "if asked { req.fhdr_cnt(transfer-encoding) gt 0 }"),
        _refused(415, "compressed requests are closed here", "if { req.fhdr_cnt(content-encoding) gt 0 }"),
        _refused(
            400,
            "Inference-Header-Content-Length stands there twice",
            "if { req.fhdr_cnt(inference-header-content-length) gt 1 }",
        ),
        f"    http-request wait-for-body time {_WAIT_S}s if infer",
        _refused(413, f"the body has more than {most} bytes", f"if infer {{ req.body_len gt {most} }}"),
        _ARRIVED,
        "    http-request lua.genrec_json if infer",
        _refused(400, "%[var(txn.why)]", "if { var(txn.why) -m found }"),
        "    http-request set-var(txn.infer) bool(true) if infer",
        "    default_backend http",
        "backend http",
        "    option http-server-close",  # at its end Triton waits for connections that are open
        "    acl blames_itself status 500 501",
        "    acl infer var(txn.infer) -m bool",
        "    http-response wait-for-body time 1s if blames_itself infer",
        f"    http-response set-status 400 if blames_itself infer {{ res.body -m reg '^{_BLAMED}' }}",
        "    acl away status 503",
        "    http-response wait-for-body time 1s if away infer",
        f'    http-response set-status 429 if away infer {{ res.body -m sub -i "{TOO_MANY}" }}',
        f"    server triton unix@{socket}",
    ]


def _metrics(address: str) -> list[str]:
    return [
        "frontend metrics",
        f"    bind {address}",
        "    http-request use-service prometheus-exporter if { path /metrics }",
        "    http-request return status 404",
    ]
