"""An exported graph with the backbone's matrix products in int8, for processors with instructions for it.

Weights have a scale for each column, inputs one for each row, so a prompt's answer does not depend on what else is in
its batch. ONNX Runtime's own dynamic quantisation has one scale for a whole batch: docs/performance.md compares them.
The draft head stays in float32, where int8 changes far more.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from genrec.model.fused import DOMAIN

_BACKBONE = re.compile(r"(^|/)[a-z]+_proj(_\d+)?/MatMul$")  # as transformers names a layer's projections
_LARGEST = 127  # weights and inputs are -127 .. 127; inputs are held as 1 .. 255, as ONNX Runtime's kernels like them
_LEAST = 1e-12  # a scale of zeros
_ONE_FILE = 1 << 30  # bytes of weights; protobuf holds less than 2 GiB


def quantize_backbone(graph: Path, out: Path) -> None:
    """Write `graph`, an exported `.onnx` file, to `out` with every product of the backbone's layers in int8.

    A product x W is `s_x s_W (q_x q_W)` with q rounded to integers, s_W = max |W| / 127 for each column, and
    s_x = max |x| / 127 for each row, found as the graph runs. Raises ValueError for a graph without such products.
    """
    model = onnx.load(str(graph))
    weights = {weight.name: weight for weight in model.graph.initializer}
    # The exporter writes weights that are used again, as by the steps of a beam search, as the same under another name.
    named = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and _BACKBONE.search(node.name)]
    for node in products:
        node.input[1] = named.get(node.input[1], node.input[1])
    if not products or any(node.input[1] not in weights for node in products):
        raise ValueError(f"{graph}: its layers' products, such as q_proj, are not as exported; export it anew")
    made = {
        "int8.step": np.float32(1 / _LARGEST),
        "int8.least": np.float32(_LEAST),
        "int8.one": np.float32(1),
        "int8.zero": np.uint8(_LARGEST + 1),
        "int8.last": np.array([-1]),
    }
    quantized: dict[str, list[NodeProto]] = {}  # of inputs: a layer's queries, keys and values share theirs
    instead = {}
    for node in products:
        values, weight = node.input
        before = [] if values in quantized else quantized.setdefault(values, list(_rows(values)))
        if f"{weight}.whole" not in made:
            whole, scales = _columns(numpy_helper.to_array(weights[weight]))
            made |= {f"{weight}.whole": whole, f"{weight}.scales": scales}
        instead[node.name] = [*before, *_product(node)]
    nodes = [new for node in model.graph.node for new in instead.get(node.name, [node])]
    used = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    nodes = [node for node in nodes if not used.isdisjoint(node.output)]
    used = {name for node in nodes for name in node.input}
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [weight for name, weight in weights.items() if name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in made.items())
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > _ONE_FILE
    beside = out.with_name(f"{out.name}.weights")
    onnx.save(model, str(out), save_as_external_data=large, location=beside.name if large else None)
    if large:
        shutil.copymode(out, beside)  # onnx lets nobody else read it


def _columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [r, c] -> int8 [r, c] and the scale of each column, float32 [c]."""
    scales = np.maximum(np.abs(weight).max(0), _LEAST) / _LARGEST
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def _rows(values: str) -> Iterator[NodeProto]:
    """What makes `values`.int8, uint8 around 128, and the scale of each row, `values`.scale [.., 1]."""
    sizes, largest, scale, divided = (f"{values}.{name}" for name in ("sizes", "largest", "scale", "divided"))
    yield helper.make_node("Abs", [values], [sizes])
    yield helper.make_node("ReduceMax", [sizes, "int8.last"], [largest], keepdims=1)
    yield helper.make_node("Mul", [largest, "int8.step"], [f"{scale}.found"])
    yield helper.make_node("Max", [f"{scale}.found", "int8.least"], [scale])
    yield helper.make_node("Div", [values, scale], [divided])
    yield helper.make_node("QuantizeLinear", [divided, "int8.one", "int8.zero"], [f"{values}.int8"])


def _product(node: NodeProto) -> Iterator[NodeProto]:
    """What computes the node's output instead of it. ONNX Runtime's operator takes one scale of all rows: 1."""
    (values, weight), name = node.input, node.name
    inputs = [f"{values}.int8", f"{weight}.whole", "int8.one", f"{weight}.scales", "int8.zero"]
    yield helper.make_node("MatMulIntegerToFloat", inputs, [f"{name}.unscaled"], name, domain=DOMAIN)
    yield helper.make_node("Mul", [f"{name}.unscaled", f"{values}.scale"], [node.output[0]])
