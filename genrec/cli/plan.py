"""`genrec plan`: what a bundle, or a model of a given shape, needs to be served."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle.checkpoint_shapes import DECODERS, HeadShape
from genrec.cli.arguments import one_of, usage
from genrec.cli.tune import measurements
from genrec.planning.deployment import Demand
from genrec.planning.deployment import plan as plan_decoder
from genrec.planning.hardware import LIMITS, PRESETS
from genrec.planning.options import (
    DEFAULT_BEAM,
    DEFAULT_ITEMS,
    DEFAULT_LEVELS,
    PRESET_OPERATOR_US,
    SUSTAINED,
    SUSTAINED_BANDWIDTH,
    HardwareSource,
    PlannedModel,
    Prompts,
    Sizes,
    demand_of,
    site_of,
)
from genrec.planning.queueing import MAX_UTILISATION
from genrec.planning.report import plan_report
from genrec.planning.work import ENGINES, PRECISIONS
from genrec.reporting.machine import usable_cores
from genrec.tuning.kept import Tuned


def _option(panel: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


_model, _hardware, _load = (partial(_option, panel) for panel in ("Model, without a bundle", "Hardware", "Load"))
_Count = Optional[int]


def plan(
    bundle_path: Annotated[Optional[Path], typer.Argument(help="A bundle; or give the shape by options.")] = None,
    decoder: Annotated[
        Optional[str],
        typer.Option(
            help="draft_head, planned beside beam search, or beam_search alone; the bundle's own by default, "
            "draft_head without one.",
            callback=one_of(DECODERS),
        ),
    ] = None,
    items: Annotated[
        _Count,
        typer.Option(
            min=1, help=f"Items of the history; the bundle's limit by default, {DEFAULT_ITEMS} without a bundle."
        ),
    ] = None,
    tokens: Annotated[
        _Count, typer.Option(min=1, help="Instead of --items: tokens of the prompt, placeholders not counted.")
    ] = None,
    beam_width: Annotated[
        _Count,
        typer.Option(min=1, help=f"Beams drafted; the bundle's number by default, {DEFAULT_BEAM} without a bundle."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="Requests that a replica takes at once, at most.")
    ] = 1,
    precision: Annotated[
        str,
        typer.Option(help="Precision of the weights: " + ", ".join(PRECISIONS), callback=one_of(tuple(PRECISIONS))),
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    hidden_size: Annotated[_Count, _model("Width of the hidden states; needed without a bundle.", min=1)] = None,
    intermediate_size: Annotated[
        _Count, _model("Inner width of the feed-forward layers; three times the hidden size by default.", min=1)
    ] = None,
    layers: Annotated[_Count, _model("Transformer layers; needed without a bundle.", min=1)] = None,
    heads: Annotated[
        _Count, _model("Attention heads of a layer, its queries'; needed without a bundle.", min=1)
    ] = None,
    kv_heads: Annotated[_Count, _model("Key-value heads of a layer; as many as heads by default.", min=1)] = None,
    head_dim: Annotated[_Count, _model("Width of an attention head; hidden size over heads by default.", min=1)] = None,
    vocabulary: Annotated[_Count, _model("Token embeddings; what the levels need by default.", min=1)] = None,
    levels: Annotated[
        Optional[str],
        _model(f"Codes per level, commas between; {','.join(map(str, DEFAULT_LEVELS))} by default."),
    ] = None,
    state_size: Annotated[
        _Count, _model(f"Width of a beam's state in the draft head; {HeadShape.state_size} by default.", min=1)
    ] = None,
    transition_size: Annotated[
        _Count,
        _model(
            f"Inner width of the draft head's transitions from level to level; {HeadShape.transition_size} by default.",
            min=1,
        ),
    ] = None,
    attention_heads: Annotated[
        _Count,
        _model(
            "Attention heads with which the draft head reads the history, 0 for one that does not; "
            f"{HeadShape.attention_heads} by default.",
            min=0,
        ),
    ] = None,
    device: Annotated[
        Optional[str],
        _hardware(
            "Published peak figures, times the two sustained shares: " + ", ".join(PRESETS),
            callback=one_of(tuple(PRESETS)),
        ),
    ] = None,
    measured: Annotated[
        bool, _hardware("Measure this machine in float32, some seconds; needs `onnx`.", "--measure")
    ] = False,
    threads: Annotated[int, _hardware("CPU threads of --measure; 0 for one per core.", min=0)] = 0,
    gflops: Annotated[Optional[float], _hardware("Matrix rate that a device reaches, GFLOP/s.", min=0.001)] = None,
    bandwidth: Annotated[Optional[float], _hardware("Memory bandwidth that a device reaches, GB/s.", min=0.001)] = None,
    operator_us: Annotated[
        Optional[float],
        _hardware(
            f"Microseconds to start an operator; measured by --measure, assumed {PRESET_OPERATOR_US:g} with --device, "
            "else 0.",
            min=0,
        ),
    ] = None,
    engine: Annotated[
        Optional[str],
        _hardware(
            "Whose bytes and operators are counted: onnx, the exported graph, or fused, an engine that compiles for a "
            "GPU; fused by default with --device, else onnx.",
            callback=one_of(tuple(ENGINES)),
        ),
    ] = None,
    sustained: Annotated[
        float, _hardware("Share of a preset's matrix rate that is reached: an assumption.", min=0.001, max=1)
    ] = SUSTAINED,
    sustained_bandwidth: Annotated[
        float, _hardware("Share of a preset's bandwidth that is reached: an assumption.", min=0.001, max=1)
    ] = SUSTAINED_BANDWIDTH,
    devices: Annotated[
        int, _hardware("Devices or cores of a replica, taken to be as fast together as their sum.", min=1)
    ] = 1,
    fixed_ms: Annotated[float, _hardware("Milliseconds that serving adds to every batch.", min=0)] = 0.0,
    price: Annotated[
        Optional[float], _hardware("Price of a device's hour, in any currency; for the cost of requests.", min=0)
    ] = None,
    rate: Annotated[
        Optional[float], _load("Requests per second of all replicas together, Poisson arrivals.", min=1e-6)
    ] = None,
    utilisation: Annotated[
        float,
        _load(
            f"Share of their time that replicas may work, at most; up to {MAX_UTILISATION}.",
            min=0.001,
            max=MAX_UTILISATION,
        ),
    ] = Demand.utilisation,
    p99_ms: Annotated[Optional[float], _load("Milliseconds that 99 % of the answers take at most.", min=0.001)] = None,
    spare: Annotated[int, _load("Replicas more than needed, so that as many may be lost.", min=0)] = 0,
) -> None:
    """Expected latency, its limits, replicas for a load and cost, from the arithmetic of prefill and decoder.

    Beside it what `genrec tune` measured of the bundle on this machine, if it did.
    """
    sizes = Sizes(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        levels=levels,
        state_size=state_size,
        transition_size=transition_size,
        attention_heads=attention_heads,
    )
    source = HardwareSource(
        device=device,
        measured=measured,
        threads=threads,
        gflops=gflops,
        bandwidth=bandwidth,
        operator_us=operator_us,
        sustained=sustained,
        sustained_bandwidth=sustained_bandwidth,
    )
    with usage():
        sizes.require(with_bundle=bundle_path is not None)
        prompts = Prompts(items, tokens, beam_width, batch_size)
        demand = demand_of(rate, utilisation, p99_ms, spare)
        source.require(precision)
    model = PlannedModel.of(bundle_path, sizes)
    batch = prompts.batch(model)
    decoders = model.decoders(decoder)
    site = site_of(source, devices, engine, precision, fixed_ms, price)
    plans = [plan_decoder(model.shape, name, batch, site, demand) for name in decoders]
    report = plan_report(model.shape, batch, site, demand, plans)
    tuned = None if bundle_path is None else Tuned.load(bundle_path, usable_cores())
    if as_json:
        typer.echo(json.dumps(report | {"tuned": tuned.model_dump() if tuned else None}, indent=1))
        return
    _print(report)
    if tuned is not None:
        machine = f"measured on this machine by `genrec tune`, {tuned.cores} processors, {tuned.created}"
        Console(soft_wrap=True).print(measurements(tuned, title=machine))


def _print(report: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console(soft_wrap=True)
    site, batch, decoders = report["site"], report["batch"], report["decoders"]
    hardware = site["hardware"]
    console.print(hardware["name"], highlight=False)
    console.print(
        f"a replica reaches {hardware['gflops']:,.0f} GFLOP/s and {hardware['gbytes']:,.0f} GB/s, "
        f"{hardware['operator_us']:.2g} us per operator; "
        f"{site['engine']['name']} engine, {site['precision']['name']} weights"
    )
    asked = f"{batch['tokens']} tokens, beam {batch['beam_width']}, batch of {batch['size']}"
    for name, found in decoders.items():
        table = Table("stage", "part", "GFLOP", "MB", "operators", "ms", "limit", title=f"{name}: {asked}")
        for part in found["parts"]:
            amounts = f"{part['flops'] / 1e9:.3f}", f"{part['bytes'] / 1e6:.2f}", str(part["operators"])
            table.add_row(part["stage"], part["part"], *amounts, f"{part['ms']:.3f}", part["limit"])
        console.print(table)
    summary = Table("", *decoders)
    for label, figures in _summary(list(decoders.values())).items():
        summary.add_row(label, *figures)
    console.print(summary)
    if "speed_up" in report:
        ratios = report["speed_up"]
        console.print(
            f"draft head over beam search: {ratios['tokens']:.2f} by tokens, {ratios['flops']:.2f} by FLOPs, "
            f"{ratios['engine']:.2f} expected of the engine, {ratios['service']:.2f} with what serving adds"
        )


def _summary(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Rows of the closing table: label and a figure per decoder."""
    rows = {
        "weights, MB": [f"{one['weight_bytes'] / 1e6:,.1f}" for one in found],
        "engine ms": [f"{one['engine_ms']:.2f}" for one in found],
        "ms bound by " + ", ".join(LIMITS): [
            ", ".join(f"{spent:.2f}" for spent in one["ms_by_limit"].values()) for one in found
        ],
        "service ms, full batch": [f"{one['service_ms'][-1]:.2f}" for one in found],
        "requests/s of a busy replica": [f"{one['requests_per_s']:,.1f}" for one in found],
    }
    fleets = [one["fleet"] for one in found if one["fleet"]]
    if fleets:
        rows["replicas (spare)"] = [f"{fleet['replicas']} (+{fleet['spare']})" for fleet in fleets]
        rows["utilisation"] = [f"{fleet['utilisation']:.2f}" for fleet in fleets]
        rows["p50 / p95 / p99 ms"] = [
            " / ".join(f"{fleet[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")) for fleet in fleets
        ]
    if found[0]["cost_per_million"] is not None:
        rows["cost per million requests"] = [f"{one['cost_per_million']:,.4f}" for one in found]
    return rows
