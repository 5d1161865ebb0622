"""How fast a device is: figures that are given, published, or measured here with ONNX Runtime, the engine that serves.

A part of the work takes as long as the slower of its arithmetic and its bytes (the roofline model: Williams, Waterman
and Patterson, CACM 52(4), 2009), and a fixed time for every operator that is started.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from genrec.planning.work import Part, Work
from genrec.reporting.timing import medians

COMPUTE, MEMORY, OPERATORS = LIMITS = ("compute", "memory", "operators")


@dataclass(frozen=True)
class Hardware:
    """What one replica reaches in practice.

    gflops: of matrix products, GFLOP/s. gbytes: of memory, GB/s. operator_us: microseconds that starting an operator
    takes.
    """

    name: str
    gflops: float
    gbytes: float
    operator_us: float

    def __post_init__(self) -> None:
        for name, unit in (("gflops", "GFLOP/s"), ("gbytes", "GB/s")):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} {value} {unit} must be above 0: give what the hardware reaches")
        if not 0 <= self.operator_us < math.inf:
            raise ValueError(f"operator-us {self.operator_us} must not be negative; 0 leaves operators out")

    def ms_by_limit(self, work: Work) -> dict[str, float]:
        """Milliseconds that each resource alone would take."""
        return {
            COMPUTE: work.flops / self.gflops / 1e6,
            MEMORY: work.bytes / self.gbytes / 1e6,
            OPERATORS: work.operators * self.operator_us / 1e3,
        }

    def ms(self, work: Work) -> float:
        """Milliseconds of one part: arithmetic and bytes at the same time, operators before."""
        by_limit = self.ms_by_limit(work)
        return max(by_limit[COMPUTE], by_limit[MEMORY]) + by_limit[OPERATORS]

    def limit(self, work: Work) -> str:
        """What takes longest of COMPUTE, MEMORY and OPERATORS."""
        by_limit = self.ms_by_limit(work)
        return max(by_limit, key=by_limit.__getitem__)

    def total_ms(self, parts: tuple[Part, ...]) -> float:
        """Milliseconds of parts that run one after the other."""
        return sum(self.ms(part.work) for part in parts)


@dataclass(frozen=True)
class Preset:
    """A device's published peak figures, dense: GFLOP/s by precision, GB/s. source: where they are published."""

    gflops: dict[str, float]
    gbytes: float
    source: str


_HOPPER = {"float32": 66.9e3, "bf16": 989.4e3, "int8": 1978.9e3}
# Published with sparsity where NVIDIA does so; here without. float32 is true float32, not TF32.
PRESETS = {
    "h100-sxm": Preset(_HOPPER, 3350, "NVIDIA H100 Tensor Core GPU datasheet, SXM5, dense"),
    "h200-sxm": Preset(_HOPPER, 4800, "NVIDIA H200 Tensor Core GPU datasheet, SXM, dense"),
    "a100-sxm-80gb": Preset(
        {"float32": 19.5e3, "bf16": 312e3, "int8": 624e3}, 2039, "NVIDIA A100 80GB datasheet, SXM, dense"
    ),
    "l4": Preset({"float32": 30.3e3, "bf16": 121e3, "int8": 242.5e3}, 300, "NVIDIA L4 datasheet, dense"),
}

Probes = dict[str, tuple[Callable[[], object], float]]
_ROWS, _WIDTH = 128, 1024  # a prompt's rows through a backbone's layer
_READ_ROWS, _READ_COLUMNS = 8192, 4096  # 128 MiB, above any cache that serving could count on
_PRODUCTS, _ADDITIONS = 8, 512  # of one call


def probes(threads: int) -> Probes:
    """Calls that keep one resource busy, and the FLOPs, bytes or operators of one call. threads: 0 for one per core.

    compute: a chain of matrix products of 128 rows with constant weights, which ONNX Runtime packs as it does a
    model's. memory: 128 MiB read by the product with one row. operators: a chain of additions of 64 numbers. Needs
    `onnx`, of the extra `build`.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_ROWS, _WIDTH), np.float32)
    weights = rng.standard_normal((_WIDTH, _WIDTH), np.float32) / np.sqrt(_WIDTH, dtype=np.float32)
    row, large = rng.random((1, _READ_ROWS), np.float32), rng.random((_READ_ROWS, _READ_COLUMNS), np.float32)
    few = rng.random(64, np.float32)
    products, reading = _session("MatMul", 2, _PRODUCTS, threads, weights), _session("MatMul", 2, 1, threads)
    additions = _session("Add", 1, _ADDITIONS, threads)
    return {
        COMPUTE: (lambda: products.run(None, {"a": rows}), _PRODUCTS * 2 * rows.size * _WIDTH),
        MEMORY: (lambda: reading.run(None, {"a": row, "b": large}), large.nbytes),
        OPERATORS: (lambda: additions.run(None, {"a": few, "b": few}), _ADDITIONS),
    }


def hardware_of(name: str, seconds: dict[str, float], measured: Probes) -> Hardware:
    """From the seconds that each probe took."""
    rates = {probe: amount / seconds[probe] for probe, (_, amount) in measured.items()}
    return Hardware(name, rates[COMPUTE] / 1e9, rates[MEMORY] / 1e9, 1e6 / rates[OPERATORS])


def measure(threads: int, repeats: int = 30) -> Hardware:
    """This machine in float32: the medians of `repeats` calls of each probe, in turn; a few seconds."""
    calls = probes(threads)
    seconds = medians({name: call for name, (call, _) in calls.items()}, repeats)
    return hardware_of(f"this machine, threads: {threads or 'one per core'}", seconds, calls)


def _session(operator: str, rank: int, count: int, threads: int, constant: np.ndarray | None = None) -> Any:
    """ONNX Runtime on a = operator(a, b), `count` times over, of float32 arrays of `rank`; b an input or `constant`."""
    from onnx import TensorProto, helper, numpy_helper

    from genrec.engines.onnx import open_session

    names = ["a", *(f"x{number}" for number in range(count))]
    nodes = [helper.make_node(operator, [old, "b"], [new]) for old, new in pairwise(names)]
    inputs = ["a"] if constant is not None else ["a", "b"]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in side]
        for side in (inputs, names[-1:])
    ]
    constants = [] if constant is None else [numpy_helper.from_array(constant, "b")]
    graph = helper.make_graph(nodes, operator, *ends, initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return open_session(model.SerializeToString(), threads)
