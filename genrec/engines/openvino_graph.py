"""Reads an exported graph into OpenVINO: what the graph takes from ONNX Runtime is written in OpenVINO's operators.

So a bundle holds one graph for both. And OpenVINO's CPU plugin computes integers in 32 bits, whatever a graph says, and
divides and reduces them in float32, which is exact up to 2^24 only: where there are larger ones, they are divided in
steps. They are always reduced pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset16 as op
from openvino.frontend.onnx import ConversionExtension

MICROSOFT = "com.microsoft"  # where ONNX Runtime keeps operators of its own
EXACT = 1 << 24  # integers that float32 divides exactly


def read_graph(path: Path, outputs: Iterable[str], largest: int) -> ov.Model:
    """The graph at `path` with the `outputs` of these names alone; what only the others need is gone.

    largest: of the integers that it divides. Raises ValueError for an output that the graph does not have.
    """
    core = ov.Core()
    for name, convert in (("RotaryEmbedding", _rotary_embedding), ("MultiHeadAttention", _causal_attention)):
        core.add_extension(ConversionExtension(name, MICROSOFT, convert))
    for name, convert in (("ReduceMax", _greatest), ("ReduceSum", _sum)):
        core.add_extension(ConversionExtension(name, "", convert))
    if largest > EXACT:
        for name, convert in (("Div", _division), ("Mod", _remainder)):
            core.add_extension(ConversionExtension(name, "", convert))
    model = core.read_model(path)
    found = {name: result for result in model.get_results() for name in result.output(0).get_names()}
    missing = [name for name in outputs if name not in found]
    if missing:
        raise ValueError(f"{path}: has no output {', '.join(missing)}")
    return ov.Model([found[name] for name in outputs], model.get_parameters())


def _rotary_embedding(node: Any) -> list[ov.Output]:
    """As `genrec.model.fused.RotaryEmbedding`: values [B, R, heads * e] at positions [B, R], or from [1] on."""
    values, positions, *tables = (node.get_input(at) for at in range(4))
    half = tables[0].get_partial_shape()[1].get_length()
    heads = node.get_attribute("num_heads")
    if positions.get_partial_shape().rank.get_length() == 1:
        positions = op.unsqueeze(op.add(_count(values), positions), _ints(0))
    cos, sin = (op.unsqueeze(op.gather(table, positions, _int(0)), _ints(2)) for table in tables)
    left, right = op.split(_heads(values, heads, 2 * half), _int(3), 2).outputs()
    turned = [
        op.subtract(op.multiply(left, cos), op.multiply(right, sin)),
        op.add(op.multiply(right, cos), op.multiply(left, sin)),
    ]
    return _joined(op.concat(turned, 3), heads * 2 * half)


def _causal_attention(node: Any) -> list[ov.Output]:
    """As `genrec.model.fused.CausalAttention`: queries, keys and values [B, S, heads * e]."""
    size, heads = node.get_input(0).get_partial_shape()[2].get_length(), node.get_attribute("num_heads")
    across = _ints(0, 2, 1, 3)
    inputs = [op.transpose(_heads(node.get_input(at), heads, size // heads), across) for at in range(3)]
    scale = op.constant(np.float32(node.get_attribute("scale")))
    # With a scale there has to be a mask, too, which is left out of causal attention.
    mixed = op.scaled_dot_product_attention(*inputs, op.constant(np.float32(0)), scale, causal=True)
    return _joined(op.transpose(mixed, across), size)


def _greatest(node: Any) -> list[ov.Output]:
    """ONNX's ReduceMax."""
    return _reduced(node, op.reduce_max, op.maximum)


def _sum(node: Any) -> list[ov.Output]:
    """ONNX's ReduceSum."""
    return _reduced(node, op.reduce_sum, op.add)


def _reduced(node: Any, whole: Callable[..., ov.Node], pair: Callable[..., ov.Node]) -> list[ov.Output]:
    """A reduction over named axes: `pair` by pair of integers, for which the sizes of the axes have to be known."""
    values, axes, kept = node.get_input(0), node.get_input(1), bool(node.get_attribute("keepdims"))
    if not values.get_element_type().is_integral():
        return whole(values, axes, kept).outputs()
    shape = values.get_partial_shape()
    rank = shape.rank.get_length()
    for axis in (axis % rank for axis in axes.get_node().get_data().tolist()):
        count = shape[axis].get_length()
        while count % 2 == 0:
            count //= 2
            values = pair(*op.split(values, _int(axis), 2).outputs()).output(0)
        if count > 1:
            first, *others = op.split(values, _int(axis), count).outputs()
            for other in others:
                first = pair(first, other).output(0)
            values = first
    return [values] if kept else op.squeeze(values, axes).outputs()


def _division(node: Any) -> list[ov.Output]:
    """ONNX's Div. Of integers that are not negative, exactly up to 2^31."""
    values, by = node.get_input(0), node.get_input(1)
    if not values.get_element_type().is_integral():
        return op.divide(values, by).outputs()
    return [_divided(values, by)[0]]


def _remainder(node: Any) -> list[ov.Output]:
    """ONNX's Mod of integers that are not negative, exactly up to 2^31."""
    return [_divided(node.get_input(0), node.get_input(1))[1]]


def _divided(values: ov.Output, by: ov.Output) -> tuple[ov.Output, ov.Output]:
    """Quotient and remainder.

    Products and differences are exact modulo 2^32. The first quotient is off by 2^-22 of itself at most, so what is
    left is at most by + 2^9 in size, and the second one puts that right but for one `by`.
    """
    zero, one = (op.convert_like(_int(number), values) for number in (0, 1))
    quotient = op.divide(values, by)
    left = op.subtract(values, op.multiply(quotient, by))
    step = op.divide(left, by)
    quotient, left = op.add(quotient, step), op.subtract(left, op.multiply(step, by))
    step = op.subtract(op.select(op.greater_equal(left, by), one, zero), op.select(op.less(left, zero), one, zero))
    quotient, left = op.add(quotient, step), op.subtract(left, op.multiply(step, by))
    return quotient.output(0), left.output(0)


def _heads(values: ov.Output, heads: int, size: int) -> ov.Node:
    """[B, R, heads * size] -> [B, R, heads, size]."""
    return op.reshape(values, _ints(0, 0, heads, size), special_zero=True)


def _joined(values: ov.Node, size: int) -> list[ov.Output]:
    """[B, R, heads, e] -> [B, R, size], as the outputs of a converted node."""
    return op.reshape(values, _ints(0, 0, size), special_zero=True).outputs()


def _count(values: ov.Output) -> ov.Node:
    """0 .. R - 1 of [B, R, ..]: int64 [R]."""
    rows = op.gather(op.shape_of(values), _int(1), _int(0))
    return op.range(_int(0), rows, _int(1), output_type="i64")


def _ints(*values: int) -> ov.Node:
    return op.constant(np.array(values, np.int64))


def _int(value: int) -> ov.Node:
    return op.constant(np.int64(value))
