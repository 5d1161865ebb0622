"""Serves a bundle in every likely way, one after the other, and asks each server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np

from genrec.bundle import ONNX_INT8, Bundle
from genrec.serving.repository import Deployment
from genrec.serving.serve import serve_bundle
from genrec.serving.triton import TritonStartError
from genrec.tuning.choices import Choice, Measured
from genrec.tuning.load import AT_ONCE, Client, ready_made

BEST = 10  # items of an answer that are compared
LEAST_SAME = 0.95  # share of them that has to stay where the precision is lower
HISTORIES = 64
_HOPELESS = 1.25  # choices that are worse than the best by this ratio, in both ways, are not measured again
_PATIENT_MS = 60_000.0
_SEED = 0


def drawn(bundle: Bundle, count: int = HISTORIES) -> list[list[bytes]]:
    """Histories of every length, of items drawn evenly from the bundle's catalogue: always the same."""
    rng, ids = np.random.default_rng(_SEED), bundle.catalog.item_ids
    most = min(bundle.manifest.prompt.max_history, len(ids))
    lengths = np.linspace(1, most, count).round().astype(int)
    return [ids[rng.choice(len(ids), length, replace=False)].tolist() for length in rng.permutation(lengths)]


def precisions(bundle_path: Path, asked: str = "auto") -> list[tuple[str, str]]:
    """Engines that can serve a bundle here, each with what it computes in if `asked` is given as `--precision`."""
    found = []
    if asked in ("auto", "f32"):
        found.append(("onnx", "f32"))
    if asked in ("auto", "int8"):
        from genrec.engines.onnx import multiplies_int8

        if multiplies_int8() and (bundle_path / ONNX_INT8).exists():
            found.append(("onnx", "int8"))
    if asked != "int8" and find_spec("openvino") is not None:
        from genrec.engines.openvino import precision_here, runs_here

        if runs_here():
            found.append(("openvino", precision_here(asked)))
    return found


def measure(
    bundle_path: Path,
    choices: Sequence[Choice],
    histories: Sequence[Sequence[bytes]],
    seconds: float,
    rounds: int = 2,
    told: Callable[[Measured], None] = lambda one: None,
) -> list[Measured]:
    """The figures of every choice, in their order.

    histories: of users who ask, item ids. seconds: of one run with a request at a time, and of one with many under way.
    rounds: over all choices; of each the better figures count, because what else runs on a machine only ever slows.
    What the first round shows to be hopeless is left out of the others. told: is given each measurement at once.
    """
    requests = ready_made(histories, _PATIENT_MS)
    found: dict[Choice, Measured] = {}
    reference: list[list[str]] = []
    for number in range(rounds):
        left = choices if number == 0 else list(_hopeful(found))
        for choice in left[:: -1 if number % 2 else 1]:
            one, items = _served(bundle_path, choice, requests, seconds)
            if number == 0 and not one.refused:
                if not reference and choice.precision == "f32":
                    reference = items
                elif reference:
                    one = _compared(one, items, reference)
            told(one)
            found[choice] = _better(found[choice], one) if choice in found else one
    return list(found.values())


def _served(
    bundle_path: Path, choice: Choice, requests: list[bytes], seconds: float
) -> tuple[Measured, list[list[str]]]:
    """What one server of it takes, and what it answers."""

    async def asked(url: str) -> Measured:
        client = Client(url, requests, _PATIENT_MS)
        try:
            items.extend(await client.items())  # which also warms it up
            alone = (await client.closed(seconds, 1)).summary()
            saturated = (await client.closed(seconds, AT_ONCE)).summary()
        except grpc.aio.AioRpcError as error:
            return Measured(choice=choice, refused=f"{error.code().name}: {error.details()}")
        finally:
            await client.close()
        return Measured(
            choice=choice,
            p50_ms=alone["p50"],
            p95_ms=alone["p95"],
            p99_ms=alone["p99"],
            requests_per_s=saturated["goodput"],
        )

    items: list[list[str]] = []
    deployment = Deployment(**choice.model_dump(), timeout_ms=int(_PATIENT_MS))
    with TemporaryDirectory(prefix="genrec-") as scratch:
        try:
            with serve_bundle(bundle_path, deployment, log_path=Path(scratch) / "triton.log") as server:
                return asyncio.run(asked(server.grpc_url)), items
        except TritonStartError as error:
            return Measured(choice=choice, refused=str(error).splitlines()[0]), items


def _compared(one: Measured, items: list[list[str]], reference: list[list[str]]) -> Measured:
    """The measurement with the share of the best items that stay; refused if too few do."""
    kept = [len({*own[:BEST]} & {*wanted[:BEST]}) for own, wanted in zip(items, reference, strict=True)]
    same = sum(kept) / max(1, sum(len(wanted[:BEST]) for wanted in reference))
    refused = ""
    if one.choice.precision != "f32" and same < LEAST_SAME:
        refused = f"{one.choice.precision} keeps {same:.1%} of the {BEST} best, less than {LEAST_SAME:.0%}"
    return one.model_copy(update={"same": same, "refused": refused})


def _hopeful(found: dict[Choice, Measured]) -> Iterator[Choice]:
    able = {choice: one.costs for choice, one in found.items() if one.costs}
    if able:
        best = [min(costs) for costs in zip(*able.values(), strict=True)]
        for choice, costs in able.items():
            if any(cost <= _HOPELESS * least for cost, least in zip(costs, best, strict=True)):
                yield choice


def _better(first: Measured, second: Measured) -> Measured:
    """The better figures of two measurements of one choice."""
    if second.refused:
        return second
    assert first.p50_ms and second.p50_ms and first.requests_per_s and second.requests_per_s
    faster = second if second.p50_ms < first.p50_ms else first
    most = max(first.requests_per_s, second.requests_per_s)
    return faster.model_copy(update={"requests_per_s": most, "same": first.same})
