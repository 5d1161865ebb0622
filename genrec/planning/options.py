"""What `genrec plan` is asked: its options in groups, which of them go together, and what they come to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from genrec.bundle import CHECKPOINT, Bundle
from genrec.bundle.checkpoint_shapes import BEAM_SEARCH, DECODERS, DRAFT_HEAD, HeadShape, decoder_of
from genrec.errors import in_words
from genrec.planning.deployment import Demand, Site
from genrec.planning.hardware import PRESETS, Hardware, measure
from genrec.planning.work import ENGINES, PRECISIONS, Batch, Shape

# Without a bundle: as `genrec build` has them by default, with larger levels.
DEFAULT_LEVELS, DEFAULT_ITEMS, DEFAULT_BEAM = (256, 256, 256), 20, 128
# Assumed with published peak figures: the shares of them that a good engine sustains, and microseconds for each kernel
# of a captured graph.
SUSTAINED, SUSTAINED_BANDWIDTH, PRESET_OPERATOR_US = 0.5, 0.7, 2.0


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, None for those that are not given; fields as in `Shape`, levels as text: "256,256,256"."""

    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    levels: str | None = None
    state_size: int | None = None
    transition_size: int | None = None
    attention_heads: int | None = None

    @property
    def given(self) -> dict[str, Any]:
        """By name, those that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def require(self, with_bundle: bool) -> None:
        """Raises ValueError unless they spell out a shape, or leave it to the bundle if there is one."""
        if not with_bundle:
            self.shape()
        elif self.given:
            name = next(iter(self.given))
            raise ValueError(
                f"--{_flag(name)} {self.given[name]} is the bundle's to say: give the option or the bundle"
            )

    def shape(self) -> Shape:
        """The shape that they spell out. Raises ValueError for what is missing or cannot be."""
        given = self.given
        missing = [f"--{_flag(name)}" for name in ("hidden_size", "layers", "heads") if name not in given]
        if missing:
            raise ValueError(f"without a bundle, {', '.join(missing)} must be given")
        hidden, heads = given["hidden_size"], given["heads"]
        if "head_dim" not in given and hidden % heads:
            raise ValueError(f"hidden-size {hidden} is no multiple of heads {heads}: change one, or give --head-dim")
        levels = DEFAULT_LEVELS if self.levels is None else _parse_levels(self.levels)
        defaults = {
            "intermediate_size": 3 * hidden,
            "kv_heads": heads,
            "head_dim": hidden // heads,
            "vocabulary": 2 + len(levels) + sum(levels),
            **asdict(HeadShape()),
        }
        return Shape(**(defaults | given | {"levels": levels}))


@dataclass(frozen=True)
class PlannedModel:
    """What is planned, and how it is asked unless said otherwise.

    prefix: tokens of a prompt before its items. markers: tokens of an item beside its codes. max_items: the most that a
    history may have, None without a limit.
    """

    shape: Shape
    decoder: str = DRAFT_HEAD
    prefix: int = 1
    markers: int = 0
    max_items: int | None = None
    beam_width: int = DEFAULT_BEAM

    @classmethod
    def of(cls, bundle: Path | None, sizes: Sizes) -> PlannedModel:
        """The bundle's model, or one of the sizes. Raises ValueError for both at once; BundleError."""
        if bundle is None:
            return cls(sizes.shape())
        sizes.require(with_bundle=True)
        return cls._of_bundle(Bundle(bundle))

    @classmethod
    def _of_bundle(cls, bundle: Bundle) -> PlannedModel:
        path = bundle.path / CHECKPOINT / "config.json"
        try:
            config = json.loads(path.read_text())
            shape, decoder = Shape.of_config(config), decoder_of(config)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: cannot be used: {in_words(error)}; `genrec check` says what is wrong") from error
        layout = bundle.layout
        beam_width = bundle.manifest.beam_width
        return cls(shape, decoder, len(layout.opening), len(layout.markers), layout.max_history, beam_width)

    def decoders(self, asked: str | None) -> tuple[str, ...]:
        """What is planned if `asked` is: a draft head beside beam search, or beam search alone. None: the model's own.

        Raises ValueError for an unknown one.
        """
        if asked is not None and asked not in DECODERS:
            raise ValueError(f"decoder {asked!r} is unknown; use one of {', '.join(DECODERS)}")
        return (BEAM_SEARCH,) if (asked or self.decoder) == BEAM_SEARCH else DECODERS


@dataclass(frozen=True)
class Prompts:
    """What is asked at once: `size` prompts of `items` items or `tokens` tokens. None for what the model says."""

    items: int | None
    tokens: int | None
    beam_width: int | None
    size: int

    def __post_init__(self) -> None:
        if self.items is not None and self.tokens is not None:
            raise ValueError(
                f"items {self.items} and tokens {self.tokens} both say how long the prompt is: give one of them"
            )

    def batch(self, model: PlannedModel) -> Batch:
        """Raises ValueError for more items than the model's prompts hold."""
        if self.items is not None and model.max_items is not None and self.items > model.max_items:
            raise ValueError(
                f"items {self.items}: this bundle's prompts hold {model.max_items} at most; build it with --max-history"
            )
        items = self.items or model.max_items or DEFAULT_ITEMS
        tokens = self.tokens or model.prefix + items * (len(model.shape.levels) + model.markers)
        return Batch(tokens, self.beam_width or model.beam_width, self.size)


@dataclass(frozen=True)
class HardwareSource:
    """Where the figures of one device come from: `device`, a preset; `measured`; or `gflops` with `bandwidth`.

    threads: to measure with, 0 for one per core. gflops: GFLOP/s. bandwidth: GB/s. operator_us: microseconds to start
    an operator, None for what the source says. sustained, sustained_bandwidth: shares of a preset that are reached.
    """

    device: str | None = None
    measured: bool = False
    threads: int = 0
    gflops: float | None = None
    bandwidth: float | None = None
    operator_us: float | None = None
    sustained: float = SUSTAINED
    sustained_bandwidth: float = SUSTAINED_BANDWIDTH

    def require(self, precision: str) -> None:
        """Raises ValueError unless exactly one source is named, which has figures for the precision."""
        figures = self.gflops is not None or self.bandwidth is not None
        if (self.device is not None) + self.measured + figures != 1:
            raise ValueError(
                f"hardware: give one of --device ({', '.join(PRESETS)}), --measure, --gflops with --bandwidth"
            )
        if figures and (self.gflops is None or self.bandwidth is None):
            raise ValueError(f"gflops {self.gflops}, bandwidth {self.bandwidth}: the two go together, give both")
        if self.measured and precision != "float32":
            raise ValueError(f"precision {precision}: --measure is of float32; give --gflops and --bandwidth instead")
        if self.device is not None and self.device not in PRESETS:
            raise ValueError(f"device {self.device!r} is unknown; use one of {', '.join(PRESETS)}, or give --gflops")

    def hardware(self, precision: str) -> Hardware:
        """The figures; a measurement takes some seconds. Raises ValueError as `require`."""
        self.require(precision)
        if self.measured:
            found = measure(self.threads)
            return found if self.operator_us is None else replace(found, operator_us=self.operator_us)
        if self.device is not None:
            return self._published(self.device, precision)
        assert self.gflops is not None and self.bandwidth is not None
        return Hardware("as given", self.gflops, self.bandwidth, self.operator_us or 0.0)

    def _published(self, device: str, precision: str) -> Hardware:
        preset = PRESETS[device]
        gflops, share, bandwidth_share = preset.gflops[precision], self.sustained, self.sustained_bandwidth
        return Hardware(
            f"{device}: {share:.0%} of {gflops:,.0f} GFLOP/s, {bandwidth_share:.0%} of {preset.gbytes:,.0f} GB/s "
            f"({preset.source})",
            gflops * share,
            preset.gbytes * bandwidth_share,
            PRESET_OPERATOR_US if self.operator_us is None else self.operator_us,
        )


def site_of(
    source: HardwareSource, devices: int, engine: str | None, precision: str, fixed_ms: float, price: float | None
) -> Site:
    """A replica of `devices` such devices, as fast together as their sum. Raises ValueError for an unknown name.

    engine: None for "fused" with a preset's figures, else "onnx". price: of one device's hour.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    engine = engine or ("fused" if source.device else "onnx")
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}")
    one = source.hardware(precision)
    return Site(
        replace(one, gflops=one.gflops * devices, gbytes=one.gbytes * devices),
        ENGINES[engine],
        PRECISIONS[precision],
        fixed_ms,
        None if price is None else price * devices,
    )


def demand_of(rate: float | None, utilisation: float, p99_ms: float | None, spare: int) -> Demand | None:
    """The demand, None without a rate. Raises ValueError for a limit or spare replicas without one."""
    if rate is not None:
        return Demand(rate, utilisation, p99_ms, spare)
    if p99_ms is not None or spare:
        raise ValueError("--p99-ms and --spare say how to carry a load: give --rate, requests per second")
    return None


def _parse_levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"levels {text!r}: write whole numbers with commas between them") from None


def _flag(name: str) -> str:
    return name.replace("_", "-")
