"""`genrec plan`: what a bundle, or a model of a given shape, needs to be served."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from genrec.bundle import CHECKPOINT, Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, DRAFT_HEAD, HeadShape, decoder_of
from genrec.planning.deployment import Load, Plan, Site
from genrec.planning.deployment import plan as plan_decoder
from genrec.planning.hardware import LIMITS, PRESETS, Hardware, measure
from genrec.planning.work import ENGINES, PRECISIONS, Batch, Precision, Shape, token_bound

# Assumed with published peak figures: the shares of them that a good engine sustains, and microseconds for each kernel
# of a captured graph.
SUSTAINED, SUSTAINED_BANDWIDTH, PRESET_OPERATOR_US = 0.5, 0.7, 2.0
_DEFAULT_LEVELS, _DEFAULT_ITEMS, _DEFAULT_BEAM = (256, 256, 256), 20, 128


def _option(panel: str, text: str, *names: str, **limits: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **limits)


_model, _hardware, _load = (partial(_option, panel) for panel in ("Model, without a bundle", "Hardware", "Load"))
_Count = Optional[int]


def plan(
    bundle_path: Annotated[Optional[Path], typer.Argument(help="A bundle; or give the shape by options.")] = None,
    decoder: Annotated[
        Optional[str], typer.Option(help="draft_head, planned beside beam search, or beam_search alone.")
    ] = None,
    items: Annotated[_Count, typer.Option(min=1, help="Items of the history; the bundle's limit by default.")] = None,
    tokens: Annotated[
        _Count, typer.Option(min=1, help="Instead: tokens of the prompt, placeholders not counted.")
    ] = None,
    beam_width: Annotated[_Count, typer.Option(min=1, help="The bundle's by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that a replica takes at once, at most.")] = 1,
    precision: Annotated[str, typer.Option(help="Of the weights: " + ", ".join(PRECISIONS))] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    hidden_size: Annotated[_Count, _model("", min=1)] = None,
    intermediate_size: Annotated[_Count, _model("Three times the hidden size by default.", min=1)] = None,
    layers: Annotated[_Count, _model("", min=1)] = None,
    heads: Annotated[_Count, _model("", min=1)] = None,
    kv_heads: Annotated[_Count, _model("As many as heads by default.", min=1)] = None,
    head_dim: Annotated[_Count, _model("Hidden size over heads by default.", min=1)] = None,
    vocabulary: Annotated[_Count, _model("Token embeddings; what the levels need by default.", min=1)] = None,
    levels: Annotated[Optional[str], _model("Codes per level; 256,256,256 by default.")] = None,
    state_size: Annotated[_Count, _model("Of the draft head; 128 by default.", min=1)] = None,
    transition_size: Annotated[_Count, _model("Of the draft head; 256 by default.", min=1)] = None,
    attention_heads: Annotated[_Count, _model("With which it reads the history; 4 by default.", min=0)] = None,
    device: Annotated[
        Optional[str], _hardware("Published peak figures, times the two sustained shares: " + ", ".join(PRESETS))
    ] = None,
    measured: Annotated[
        bool, _hardware("Measure this machine in float32, some seconds; needs `onnx`.", "--measure")
    ] = False,
    threads: Annotated[int, _hardware("To measure with; 0 for one per core.", min=0)] = 0,
    gflops: Annotated[Optional[float], _hardware("Matrix rate that a device reaches, GFLOP/s.")] = None,
    bandwidth: Annotated[Optional[float], _hardware("Memory bandwidth that a device reaches, GB/s.")] = None,
    operator_us: Annotated[
        Optional[float], _hardware("Microseconds to start an operator; assumed 2 with --device, else 0.")
    ] = None,
    engine: Annotated[
        Optional[str], _hardware("onnx, the exported graph, or fused, assumed with --device: what moves and starts.")
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
    fixed_ms: Annotated[float, _hardware("What serving adds to a batch, in ms.", min=0)] = 0.0,
    price: Annotated[Optional[float], _hardware("Of a device's hour, in any currency.", min=0)] = None,
    rate: Annotated[Optional[float], _load("Requests per second, Poisson arrivals.")] = None,
    utilisation: Annotated[float, _load("Share of their time that replicas may work.")] = Load.utilisation,
    p99_ms: Annotated[Optional[float], _load("What 99 % of the answers take at most.")] = None,
    spare: Annotated[int, _load("Replicas more than needed.", min=0)] = 0,
) -> None:
    """Expected latency, its limits, replicas for a load and cost, from the arithmetic of prefill and decoder."""
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocabulary": vocabulary,
        "levels": levels,
        "state_size": state_size,
        "transition_size": transition_size,
        "attention_heads": attention_heads,
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    if bundle_path:
        if given:
            raise ValueError(f"--{_flag(next(iter(given)))} is the bundle's to say: give the option or the bundle")
        bundle = Bundle(bundle_path)
        shape, own_decoder = _shape_of_bundle(bundle)
        prefix, limit = len(bundle.layout.prefix), bundle.layout.max_history
        beam_width = beam_width or bundle.manifest.beam_width
        if items is not None and items > limit:
            raise ValueError(f"items {items}: this bundle's prompts hold {limit} at most; build it with --max-history")
    else:
        shape, own_decoder, prefix, limit = _shape_of_options(given), DRAFT_HEAD, 1, _DEFAULT_ITEMS
    if items is not None and tokens is not None:
        raise ValueError(f"items {items} and tokens {tokens} both say how long the prompt is: give one of them")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    engine = engine or ("fused" if device else "onnx")
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}")
    if decoder is not None and decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; use one of {', '.join(DECODERS)}")
    if rate is None and (p99_ms is not None or spare):
        raise ValueError("--p99-ms and --spare say how to carry a load: give --rate, requests per second")
    batch = Batch(tokens or prefix + (items or limit) * len(shape.levels), beam_width or _DEFAULT_BEAM, batch_size)
    hardware = _hardware_of(
        device, measured, threads, gflops, bandwidth, operator_us, precision, (sustained, sustained_bandwidth)
    )
    site = Site(
        replace(hardware, gflops=hardware.gflops * devices, gbytes=hardware.gbytes * devices),
        ENGINES[engine],
        PRECISIONS[precision],
        fixed_ms,
        None if price is None else price * devices,
    )
    load = None if rate is None else Load(rate, utilisation, p99_ms, spare)
    planned = (BEAM_SEARCH,) if (decoder or own_decoder) == BEAM_SEARCH else DECODERS
    plans = [plan_decoder(shape, name, batch, site, load) for name in planned]
    report = _report(shape, batch, site, load, plans)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(report)


def _shape_of_bundle(bundle: Bundle) -> tuple[Shape, str]:
    """The shape of a bundle's checkpoint, and its decoder; the draft head's default sizes for one without."""
    path = bundle.path / CHECKPOINT / "config.json"
    try:
        config = json.loads(path.read_text())
        return Shape.of_config(config), decoder_of(config)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be used: {error!r}; `genrec check` says what is wrong") from error


def _shape_of_options(given: dict[str, Any]) -> Shape:
    """The shape that the options spell out. Raises ValueError for what is missing."""
    missing = [f"--{_flag(name)}" for name in ("hidden_size", "layers", "heads") if name not in given]
    if missing:
        raise ValueError(f"without a bundle, {', '.join(missing)} must be given")
    hidden, heads = given["hidden_size"], given["heads"]
    if "head_dim" not in given and hidden % heads:
        raise ValueError(f"hidden-size {hidden} is no multiple of heads {heads}: change one, or give --head-dim")
    levels: tuple[int, ...] = _DEFAULT_LEVELS
    if "levels" in given:
        try:
            levels = tuple(int(size) for size in given["levels"].split(","))
        except ValueError:
            raise ValueError(f"levels {given['levels']!r}: write whole numbers with commas between them") from None
    defaults = {
        "intermediate_size": 3 * hidden,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "vocabulary": 2 + len(levels) + sum(levels),
        **asdict(HeadShape()),
    }
    return Shape(**(defaults | given | {"levels": levels}))


def _hardware_of(
    device: str | None,
    measured: bool,
    threads: int,
    gflops: float | None,
    bandwidth: float | None,
    operator_us: float | None,
    precision: str,
    shares: tuple[float, float],
) -> Hardware:
    """One device, from the one source that the options name."""
    figures = gflops is not None or bandwidth is not None
    if (device is not None) + measured + figures != 1:
        raise ValueError(f"hardware: give one of --device ({', '.join(PRESETS)}), --measure, --gflops with --bandwidth")
    if measured:
        if precision != "float32":
            raise ValueError(f"precision {precision}: --measure is of float32; give --gflops and --bandwidth instead")
        found = measure(threads)
        return found if operator_us is None else replace(found, operator_us=operator_us)
    if device is not None:
        if device not in PRESETS:
            raise ValueError(f"device {device!r} is unknown; use one of {', '.join(PRESETS)}, or give --gflops")
        preset = PRESETS[device]
        peak, reached = (preset.gflops[precision], preset.gbytes), shares
        name = f"{device}: {reached[0]:.0%} of {peak[0]:,.0f} GFLOP/s, {reached[1]:.0%} of {peak[1]:,.0f} GB/s"
        return Hardware(
            f"{name} ({preset.source})",
            peak[0] * reached[0],
            peak[1] * reached[1],
            PRESET_OPERATOR_US if operator_us is None else operator_us,
        )
    if gflops is None or bandwidth is None:
        raise ValueError(f"gflops {gflops}, bandwidth {bandwidth}: the two go together, give both")
    return Hardware("as given", gflops, bandwidth, operator_us or 0.0)


def _report(shape: Shape, batch: Batch, site: Site, load: Load | None, plans: list[Plan]) -> dict[str, Any]:
    """Everything that is printed, as JSON has it."""
    report: dict[str, Any] = {
        "shape": asdict(shape),
        "batch": asdict(batch),
        "site": asdict(site),
        "load": asdict(load) if load else None,
        "decoders": {one.decoder: _plan_report(shape, one, site.precision) for one in plans},
    }
    if len(plans) > 1:
        drafted, searched = plans
        report["speed_up"] = {
            "tokens": token_bound(len(shape.levels), batch.tokens, batch.beam_width),
            "flops": searched.flops / drafted.flops,
            "engine": searched.engine_ms / drafted.engine_ms,
            "service": searched.service_ms[-1] / drafted.service_ms[-1],
        }
    return report


def _plan_report(shape: Shape, one: Plan, precision: Precision) -> dict[str, Any]:
    rows = list(zip(one.parts, one.part_ms, one.limits, strict=True))
    return {
        "weight_bytes": shape.parameters(one.decoder) * precision.weight,
        "parts": [
            {"stage": part.stage, "part": part.name, **asdict(part.work), "ms": spent, "limit": limit}
            for part, spent, limit in rows
        ],
        "engine_ms": one.engine_ms,
        "ms_by_limit": {name: sum(ms for _, ms, limit in rows if limit == name) for name in LIMITS},
        "service_ms": list(one.service_ms),
        "requests_per_s": one.requests_per_s,
        "fleet": asdict(one.fleet) if one.fleet else None,
        "cost_per_million": one.cost,
    }


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


def _flag(name: str) -> str:
    return name.replace("_", "-")
