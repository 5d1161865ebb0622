"""`genrec serve` and `genrec render`."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from genrec.cli.arguments import BundlePath, PublicKey, StorageOptions, one_of, storage_options, usage
from genrec.cli.rules import RulesFile, deployment_rules
from genrec.cli.tune import AIMS, best_deployment
from genrec.engines import ENGINES, PRECISIONS, require_installed
from genrec.engines.buckets import AUTO as AUTO_BUCKETS
from genrec.serving.request_log import LOGGED, OFF
from genrec.serving.triton.log import JsonLines, json_line

AUTO, JSON = "auto", "json"

_Port = Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")]


def render(
    bundle_path: BundlePath,
    out: Annotated[Path, typer.Argument(help="Where the model repository goes; one that is there is replaced.")],
    rules: RulesFile = None,
) -> None:
    """Write the model repository that serves a bundle."""
    from genrec.bundle import Bundle
    from genrec.serving.repository import Deployment, render_repository

    text = "" if rules is None else deployment_rules(rules, bundle_path)
    render_repository(Bundle(bundle_path), out, Deployment(rules=text))
    typer.echo(f"model repository in {out}")


def serve(
    bundle_path: BundlePath,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: _Port = 8001,
    http_port: _Port = 8000,
    metrics_port: _Port = 8002,
    engine: Annotated[
        str,
        typer.Option(
            help="onnx; openvino or torch where they are installed; auto: of onnx and openvino what serves this bundle "
            "best on this machine, by `genrec tune` or by what is then measured first.",
            callback=one_of((*ENGINES, AUTO)),
        ),
    ] = "onnx",
    aim: Annotated[
        str, typer.Option(help="Of --engine auto, as `genrec tune` explains it.", callback=one_of(AIMS))
    ] = AIMS[0],
    cores: Annotated[
        int, typer.Option(min=0, help="Of --engine auto: processors that its engines share; 0 for all there are.")
    ] = 0,
    masked: Annotated[bool, typer.Option(help="Draft only prefixes that exist.")] = True,
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="Threads of an onnx or openvino engine; 0 for one per core, or for --engine auto to find."
        ),
    ] = 0,
    precision: Annotated[
        str,
        typer.Option(
            help="f32; bf16 of openvino and torch; int8 of onnx, the backbone alone; or auto: bf16 where the "
            "processor or GPU is made for it, else f32.",
            callback=one_of(PRECISIONS),
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="Of a torch engine: cpu, cuda or cuda:N; a GPU if there is one by default.")
    ] = "",
    buckets: Annotated[
        str,
        typer.Option(
            help="Of a torch engine on a GPU, shapes that are recorded before it is ready: auto, all that can come; "
            "none; or sizes of batches and prompts, as 1,4,16x64,128."
        ),
    ] = AUTO_BUCKETS,
    instances: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            help="Engines side by side, of --threads each: more throughput, less speed alone. One by default; "
            "--engine auto finds the number.",
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests that a step takes at once, at most.")] = 16,
    timeout_ms: Annotated[
        int, typer.Option(min=1, help="Deadline of requests that bring none; late ones are refused.")
    ] = 1000,
    rules: RulesFile = None,
    rules_memory_mb: Annotated[
        int, typer.Option(min=1, help="MiB of each engine for the masks of rules, of the deployment and of requests.")
    ] = 256,
    knowledge: Annotated[
        Optional[Path], typer.Option(help="Also write texts, by this folder of `genrec knowledge build`; needs torch.")
    ] = None,
    verification: Annotated[
        str,
        typer.Option(
            help="How drafts of the texts are accepted: relaxed or greedy; none: one token at a time, without drafts.",
            callback=one_of(("relaxed", "greedy", "none")),
        ),
    ] = "relaxed",
    texts_at_once: Annotated[int, typer.Option(min=1, help="Texts that are written together.")] = 8,
    catalog: Annotated[
        Optional[str],
        typer.Option(
            help="Follow this live catalogue, a folder or an address as s3://bucket/path, in place of the bundle's."
        ),
    ] = None,
    catalog_cache: Annotated[
        Optional[Path],
        typer.Option(help="Folder for what a live catalogue is made into; a temporary one if not given."),
    ] = None,
    storage_option: StorageOptions = None,
    catalog_poll_s: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Seconds between two looks at the catalogue's store: one request to S3, or four.",
        ),
    ] = 0.2,
    max_lag_s: Annotated[
        float, typer.Option(min=0.1, help="Not ready when what is served is that many seconds older than the store.")
    ] = 60.0,
    ready_port: Annotated[
        Optional[int],
        typer.Option(min=0, max=65535, help="GET /ready here: whether to send requests; 0 picks one."),
    ] = None,
    exit_timeout_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds that requests in flight get to finish after SIGTERM.")
    ] = 10.0,
    restarts: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="A server or front that dies is started again, so many times within 5 minutes; 0: the command ends.",
        ),
    ] = 3,
    tls_cert: Annotated[
        Optional[Path], typer.Option(help="PEM certificate chain: gRPC over TLS. HTTP has none.")
    ] = None,
    tls_key: Annotated[Optional[Path], typer.Option(help="PEM private key of the certificate.")] = None,
    tls_client_ca: Annotated[
        Optional[Path], typer.Option(help="PEM: refuse clients without a certificate that it signed.")
    ] = None,
    front: Annotated[
        Optional[bool],
        typer.Option(
            "--front/--no-front",
            help="An HAProxy before Triton that passes only what clients need. By default where it is installed; an "
            "address that others reach is refused without it, unless --no-front says so.",
        ),
    ] = None,
    front_metrics_port: Annotated[
        Optional[int], typer.Option(min=0, max=65535, help="HAProxy's own metrics here; 0 picks a free port.")
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option(min=1 << 16, max=1 << 26, help="Of one request that the front passes.")
    ] = 1 << 20,
    tokens: Annotated[
        Optional[Path],
        typer.Option(help="Only clients with one of these tokens: lines of a name and the token's SHA-256 in hex."),
    ] = None,
    public_key: PublicKey = None,
    traces: Annotated[
        Optional[str],
        typer.Option(help="Send OpenTelemetry traces to this collector of OTLP over HTTP, as http://collector:4318."),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option(help="Of what this writes and its servers write: text, or json.", callback=one_of(("text", JSON))),
    ] = "text",
    log_requests: Annotated[
        str,
        typer.Option(
            help="Log single requests by their ids: refused ones, or all, in every step. Nothing of what they hold.",
            callback=one_of(LOGGED),
        ),
    ] = OFF,
    log_messages: Annotated[
        bool, typer.Option(help="Log why they are refused, in full: that may name items, attributes or queries.")
    ] = False,
    trace_one_in: Annotated[
        int,
        typer.Option(min=0, help="Of requests whose client traces nothing, trace one in so many; 0 for none."),
    ] = 0,
) -> None:
    """Serve a bundle with Triton, in the foreground. SIGTERM and Ctrl-C let requests in flight finish."""
    from genrec.bundle import Bundle
    from genrec.knowledge.settings import KnowledgeSettings
    from genrec.serving.ready import not_ready, readiness_endpoint
    from genrec.serving.repository import Deployment
    from genrec.serving.serve import LiveCatalog, prepare_server
    from genrec.serving.triton import ServerTls, run_in_foreground, trace_flags

    if log_format == JSON:
        sys.stderr = JsonLines(sys.stderr)
    if traces is None and trace_one_in:
        raise typer.BadParameter("--trace-one-in goes with --traces, which is missing")
    with usage("--traces", traces or ""):
        tracing = trace_flags(traces, trace_one_in) if traces else []
    store_options = storage_options(storage_option)
    if catalog is None and (catalog_cache is not None or store_options):
        raise typer.BadParameter("--catalog-cache and --storage-option go with --catalog, which is missing")
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca and tls_cert is None):
        raise typer.BadParameter("TLS takes both --tls-cert and --tls-key; --tls-client-ca goes with them")
    tls = ServerTls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key else None
    if engine == AUTO:
        from genrec.tuning.choices import Wanted

        best = best_deployment(bundle_path, cores, Wanted(precision, threads or None, instances), aim)
        engine, threads, instances = best.engine, best.threads, best.instances
        precision = best.precision
    elif cores or aim != AIMS[0]:
        raise typer.BadParameter(f"--cores and --aim go with --engine auto, not with --engine {engine}")
    with usage():
        deployment = Deployment(
            engine,
            threads,
            instances or 1,
            masked,
            max_batch_size,
            timeout_ms,
            knowledge,
            verification,
            texts_at_once,
            rules_memory_mb=rules_memory_mb,
            precision=precision,
            log_requests=log_requests,
            log_messages=log_messages,
            device=device,
            buckets=buckets,
        )
    require_installed(engine)
    if knowledge is not None:
        KnowledgeSettings.load(knowledge)  # a server would find out later
    ports = {"grpc_port": grpc_port, "http_port": http_port, "metrics_port": metrics_port}
    with_front = _with_front(front, host)
    if tokens is not None and not with_front:
        raise typer.BadParameter("--tokens are asked for by the front, which is missing here; leave --no-front out")
    for name, port in ports.items():
        if port and list(ports.values()).count(port) > 1:
            raise typer.BadParameter(f"--{name.replace('_', '-')} {port}: another endpoint has this port too")
    if rules is not None:
        # The attributes of a live catalogue are known when it is followed: the server checks against them.
        text = deployment_rules(rules, bundle_path if catalog is None else None)
        deployment = replace(deployment, rules=text)
    options: dict[str, Any] = {"exit_timeout": exit_timeout_s, "extra_args": tracing}
    with ExitStack() as running:
        before = None
        if with_front:
            from genrec.serving.front import Front

            before = running.enter_context(
                Front(
                    *deployment.models,
                    host=host,
                    grpc_port=grpc_port,
                    http_port=http_port,
                    metrics_port=front_metrics_port,
                    tls=tls,
                    max_request_bytes=max_request_bytes,
                    tokens=tokens,
                )
            )
            options |= {"sockets": before.sockets, "metrics_port": metrics_port}
        else:
            options |= {"tls": tls, **ports}
        live = None
        if catalog is not None:
            scratch = catalog_cache or Path(running.enter_context(tempfile.TemporaryDirectory(prefix="genrec-")))
            live = LiveCatalog(catalog, scratch, store_options, catalog_poll_s)
        server = running.enter_context(prepare_server(bundle_path, deployment, live, public_key, host=host, **options))
        reached = before or server

        def announce() -> None:
            urls = f"gRPC {reached.grpc_url}, HTTP {reached.http_url}, metrics {server.metrics_url}"
            if before is not None and front_metrics_port is not None:
                urls += f", the front's {before.metrics_url}"
            if ready_port is not None:
                why_not = partial(not_ready, reached.http_url, live.cache if live else None, max_lag_s)
                port = running.enter_context(readiness_endpoint(host, ready_port, why_not))
                urls += f", readiness {host}:{port}/ready"
            told = f"ready: {urls}"
            typer.echo(json_line(told) if log_format == JSON else told)

        code = run_in_foreground(
            server,
            announce,
            beside=before,
            restarts=restarts,
            before_restart=Bundle(bundle_path, public_key).check,  # files may be others by then
        )
    raise typer.Exit(code)


def _with_front(wanted: bool | None, host: str) -> bool:
    """Whether to serve behind the front. wanted: None to decide by whether HAProxy is there, and who reaches `host`.

    Raises FrontError if it is missing, and asked for or needed.
    """
    from genrec.serving.front import FrontError, find_haproxy

    if wanted is False:
        return False
    try:
        find_haproxy()
    except FrontError as error:
        if wanted or not (host == "localhost" or host.startswith("127.")):
            raise
        typer.echo(f"warning: any client can end this server: {error}", err=True)
        return False
    return True
