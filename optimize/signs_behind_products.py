"""TensorRT takes no negative scale of int8: scales lose their signs, and what is computed with a row is multiplied with its own.

    MatMul(x, W)        becomes    MatMul(x, |W|) * signs         |W|: with the scales' sizes; signs [out], 1 or -1
    Gather(table, ids)  becomes    Gather(|table|, ids) * Gather(signs, ids)

Only rows of one scale have such signs; in groups of int8 no scale is negative (see round_to_integers), and int4 may have them.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.quantise import SCALES, SIGNS

__all__ = ["signs_behind_products"]


def signs_behind_products(model: ir.Model) -> int:
    """For every matrix or stack of int8 with one scale a row. Runs behind `quantise` and `tables_dequantised`."""
    graph, found = model.graph, dict[str, ir.Value]()
    for node in [node for node in graph if node.op_type == "DequantizeLinear" and _one_scale_a_row(node)]:
        integers = node.inputs[0]
        assert integers is not None
        name = str(integers.name)
        if name not in found:
            found[name] = _part(graph, graph.initializers[f"{name}{SCALES}"], f"{name}{SIGNS}")
        for reader, chosen in _readers(node.outputs[0]):
            _multiply(graph, reader, chosen, found[name])
    if found:
        common.TopologicalSortPass()(model)
    return len(found)


def _one_scale_a_row(node: ir.Node) -> bool:
    """Of a stack [E,out,in] it is a block as long as the row."""
    integers = node.inputs[0]
    if integers is None or integers.dtype != ir.DataType.INT8 or integers.shape is None:
        return False
    return "block_size" not in node.attributes or node.attributes["block_size"].as_int() == integers.shape[-1]


class _Scales:
    """Those of a matrix, read once: sizes and signs are asked for apart, and what is asked for twice is rounded twice."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self._tensor = tensor

    @cached_property
    def values(self) -> NDArray[Any]:
        return self._tensor.numpy()

    def sizes(self) -> ir.TensorProtocol:
        return ir.tensor(np.abs(self.values))

    def signs(self) -> ir.TensorProtocol:
        """Of a matrix [out], of a stack [E,1,out]."""
        signs = np.copysign(self.values.dtype.type(1), self.values)
        return ir.tensor(signs if signs.ndim == 1 else signs.transpose(0, 2, 1))


def _part(graph: ir.Graph, scales: ir.Value, name: str) -> ir.Value:
    """Leaves the scales their sizes. Returns the signs."""
    stored, shape = scales.const_value, scales.shape
    assert stored is not None and shape is not None
    both = _Scales(stored)
    scales.const_value = ir.LazyTensor(both.sizes, dtype=stored.dtype, shape=shape, name=scales.name)
    wide = shape if len(shape) == 1 else ir.Shape([shape[0], 1, shape[1]])
    lazy = ir.LazyTensor(both.signs, dtype=stored.dtype, shape=wide, name=name)
    signs = ir.Value(name=name, shape=wide, type=ir.TensorType(stored.dtype), const_value=lazy)
    values = dict(graph.initializers)
    graph.initializers.clear()
    for key, value in values.items():  # right behind the scales, which are let go of when both are written
        graph.initializers[key] = value
        if value is scales:
            graph.register_initializer(signs)
    return signs


def _readers(value: ir.Value, chosen: ir.Value | None = None) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """What computes with a matrix, through Transposes and, of a stack, the Gather of some experts: products, lookups of a table.
    And by what they or the Gather choose."""
    for use in value.uses():
        node = use.node
        if node.op_type == "Transpose":
            yield from _readers(node.outputs[0], chosen)
        elif node.op_type == "Gather" and value.shape is not None and len(value.shape) == 3:
            yield from _readers(node.outputs[0], node.inputs[1])
        elif node.op_type == "Gather":
            yield node, node.inputs[1]
        elif node.op_type == "MatMul" and use.idx == 1:
            yield node, chosen
        else:
            raise LoweringFailed(f"signs_behind_products: {node.name} ({node.op_type}) reads {value.name}: its rows are lost")


def _multiply(graph: ir.Graph, node: ir.Node, chosen: ir.Value | None, signs: ir.Value) -> None:
    output = node.outputs[0]
    name, nodes, factor = f"{output.name}.signed", list[ir.Node](), signs
    if chosen is not None:
        nodes.append(ir.node("Gather", [signs, chosen], {"axis": 0}, name=f"{name}.signs"))
        factor = _typed(nodes[-1], signs.type, None)
    if node.op_type == "Gather":
        nodes.append(ir.node("Constant", [], {"value": ir.tensor([-1], dtype=ir.DataType.INT64)}, name=f"{name}.axis"))
        axis = _typed(nodes[-1], ir.TensorType(ir.DataType.INT64), ir.Shape([1]))
        nodes.append(ir.node("Unsqueeze", [factor, axis], name=f"{name}.column"))
        factor = _typed(nodes[-1], signs.type, None)
    product = ir.node("Mul", [output, factor], name=name)
    signed = _typed(product, output.type, output.shape)
    ir.convenience.replace_all_uses_with(output, signed, replace_graph_outputs=True)
    product.replace_input_with(0, output)
    signed.name, output.name = output.name, f"{output.name}.unsigned"  # what reads the graph's outputs knows their names
    graph.insert_after(node, [*nodes, product])


def _typed(node: ir.Node, dtype: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Value:
    value = node.outputs[0]
    value.name, value.type, value.shape = node.name, dtype, shape
    return value
