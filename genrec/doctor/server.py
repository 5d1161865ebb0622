"""Whether a running server answers, with what it should."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING

from genrec import __version__
from genrec.doctor.finding import Finding, judged
from genrec.golden import golden_query

if TYPE_CHECKING:
    from genrec.bundle import Bundle
    from genrec_client import Recommendations, Recommender

_WAIT_S = 5.0
_finding = partial(judged, "server")


def server_findings(address: str, metrics: str | None, bundle: Bundle | None) -> Iterator[Finding]:
    """What was found of the server whose gRPC endpoint is `address`, host:port.

    metrics: the address of its page, None for the usual one. bundle: that it should serve, None for any.
    """
    from genrec_client import Recommender
    from genrec_client import __version__ as client_version

    with Recommender(address, timeout_s=_WAIT_S) as client:
        (ready,) = client.readiness()
        if not ready.ready:
            todo = "start it, or name its gRPC address; its log says why it is not ready"
            yield _finding("ready", f"{address}: {ready.message}", wrong=todo)
            return
        yield _finding("ready", f"{address} has `recommend` ready")
        yield from _answer(client, bundle)
    versions = {"client": client_version, "this command": __version__}
    page = metrics or f"http://{address.rpartition(':')[0]}:8002/metrics"
    try:
        with urllib.request.urlopen(page, timeout=_WAIT_S) as answered:
            shown = answered.read().decode("utf-8", "replace")
    except (OSError, ValueError, HTTPException) as error:
        todo = "name the page with --metrics, or open its port"
        yield _finding("metrics", f"{page}: {error}", wrong=(metrics and todo) or "", warning=todo)
    else:
        found = re.search(r'^genrec_build_info\{(?:[^}]*,)?version="([^"]*)"', shown, re.M)
        todo = "another server's page, or one of an older version: name it with --metrics"
        yield _finding("metrics", f"{page} answers", warning="" if found else todo)
        if found:
            versions["server"] = found[1]
    told = ", ".join(f"{who} {version}" for who, version in versions.items())
    yield _finding("versions", told, warning="" if len({*versions.values()}) == 1 else "install the same everywhere")


def _answer(client: Recommender, bundle: Bundle | None) -> Iterator[Finding]:
    from genrec_client import RecommendError

    golden = None if bundle is None else bundle.golden
    history = [] if golden is None else [bytes(item) for item in golden["history"]]
    query = "" if golden is None else golden_query(golden).decode()
    try:
        answer = client.recommend(history, top_k=10, query=query or None)
    except RecommendError as error:
        yield _finding("answer", str(error), wrong="the server's log says more of a failure; `genrec serve` writes it")
        return
    told = f"bundle {answer.bundle_version}, catalogue {answer.catalog_version}, {answer.latency_ms:.1f} ms"
    yield _finding(
        "answer",
        f"{len(answer.items)} items; {told}",
        wrong="" if answer.items else "nothing may be shown: look at the rules of the deployment and the catalogue",
    )
    if bundle is not None and golden is not None:
        yield _compared(answer, bundle, [bytes(item).decode("utf-8", "replace") for item in golden["items"]])


def _compared(answer: Recommendations, bundle: Bundle, expected: list[str]) -> Finding:
    own = bundle.manifest
    if answer.bundle_version != own.bundle_version:
        found = f"serves {answer.bundle_version}, and the bundle here is {own.bundle_version}"
        return _finding("bundle", found, wrong="roll out this bundle, or name the one that it serves")
    same = len({*answer.item_ids} & {*expected})
    if answer.catalog_version != str(own.catalog.version):
        return _finding("bundle", f"is this one, with catalogue {answer.catalog_version} in place of its own")
    todo = "the deployment's rules, or an engine of lower precision, may explain that; else compare the engines"
    return _finding(
        "bundle",
        f"is this one; {same} of {len(expected)} items of its golden request came back",
        warning="" if same == len(expected) else todo,
    )
