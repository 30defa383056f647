"""DequantizeLinear -> Transpose -> MatMul becomes com.microsoft.MatMulNBits, one kernel of ONNX Runtime's CUDA provider.

    integers [out,in] of 4 or 8 bits, scales [out,G]   ->   B uint8 [out,G,bytes of a group], scales float16 [out,G]

The operator wants unsigned integers, whose 0 is 8 or 128 where nothing else is said: signed ones are moved up by that, which is
their highest bit turned round. Its groups have 16, 32, 64 ... values: a row with one scale repeats it for every group, and its
scales are stored under a name of their own, ROW_SCALES, so that they are read back as one. A table that rows are looked up in as
well is stored once, as B.
Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.quantisation import GROUPS, Form
from alize.optimize.quantise import SCALES
from alize.optimize.round_to_integers import Integers, unpack_nibbles

__all__ = ["ROW_SCALES", "form_of_product", "is_product", "matmul_nbits", "read_product"]

ROW_SCALES = ".row_scales"
"""What is added to a weight's name for scales that are one a row, repeated."""

_BITS = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}


def matmul_nbits(model: ir.Model) -> int:
    """Replaces every product with a matrix of integers [out,in]; `quantise` goes before, without `transpose_weights`."""
    graph, count = model.graph, 0
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        for product in _products(node):
            _replace(graph, node, product)
            count += 1
    if not count:
        raise LoweringFailed("matmul_nbits: the graph has no product with a matrix of integers")
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports["com.microsoft"] = 1
    return count


def is_product(initializers: Mapping[str, ir.Value], stored: str) -> bool:
    """Whether an initialiser is a MatMulNBits's integers."""
    return any(use.node.op_type == "MatMulNBits" and use.idx == 1 for use in initializers[stored].uses())


def read_product(initializers: Mapping[str, ir.Value], stored: str) -> Integers:
    """The matrix [out,in] under the name that B is stored by, its integers signed again."""
    form, columns = form_of_product(initializers, stored)
    rows = len(_array(initializers[stored]))
    packed = torch.from_numpy(_array(initializers[stored]).reshape(-1).astype(np.uint8) ^ _turned(form.bits))
    values = unpack_nibbles(packed, rows * columns, signed=True) if form.bits == 4 else packed.view(torch.int8)
    one = stored + SCALES not in initializers
    scales = torch.from_numpy(_array(initializers[stored + (ROW_SCALES if one else SCALES)]))
    return Integers(values.reshape(rows, columns), (scales[:, :1] if one else scales).contiguous(), None)


def form_of_product(initializers: Mapping[str, ir.Value], stored: str) -> tuple[Form, int]:
    """Of the same matrix, and the size of its input axis."""
    shape, one = initializers[stored].shape, stored + SCALES not in initializers
    assert shape is not None
    _, groups, size = shape.numpy()
    node = next(use.node for use in initializers[stored].uses() if use.node.op_type == "MatMulNBits")
    bits, columns = node.attributes["bits"].as_int(), groups * size * 8 // node.attributes["bits"].as_int()
    return Form(bits, columns if one else columns // groups), columns


def _products(node: ir.Node) -> list[ir.Node]:
    """The MatMuls that read what the node gives through a Transpose."""
    turned = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Transpose"]
    return [use.node for turn in turned for use in turn.outputs[0].uses() if use.node.op_type == "MatMul" and use.idx == 1]


def _replace(graph: ir.Graph, node: ir.Node, product: ir.Node) -> None:
    stored = node.inputs[0]
    assert stored is not None and stored.shape is not None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        raise LoweringFailed(f"matmul_nbits: {stored.name} has zero points, which are not written for it: leave out --asymmetric")
    rows, columns = (int(size) for size in stored.shape.numpy())
    assert stored.dtype is not None
    bits = _BITS[stored.dtype]
    group = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    scales, size = _scales(graph, stored, rows, columns, group)
    lookups = [use.node for use in stored.uses() if use.node.op_type == "Gather"]
    _pack(stored, rows, columns // size, size * bits // 8, bits)
    for lookup in lookups:
        _look_up(graph, lookup, scales, 1 << (bits - 1))
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": size}
    fused = ir.node("MatMulNBits", [product.inputs[0], stored, scales], attributes, domain="com.microsoft", name=product.name)
    old, new = product.outputs[0], fused.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(product, fused)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def _scales(graph: ir.Graph, stored: ir.Value, rows: int, columns: int, group: int) -> tuple[ir.Value, int]:
    """The scales [out,G], and the values of a group."""
    scales = graph.initializers[f"{stored.name}{SCALES}"]
    if group and group < columns:
        return scales, group
    size = next((size for size in GROUPS if columns % size == 0), None)
    if size is None:
        raise LoweringFailed(
            f"matmul_nbits: {stored.name} has {columns} inputs, which no group of {', '.join(map(str, GROUPS))} divides: "
            "use --weights fp16"
        )
    tensor, shape = scales.const_value, ir.Shape([rows, columns // size])
    assert tensor is not None
    name = f"{stored.name}{ROW_SCALES}"

    def load() -> ir.TensorProtocol:
        single = tensor.numpy().reshape(rows, 1)
        return ir.Tensor(np.ascontiguousarray(np.broadcast_to(single, shape.numpy())), name=name)

    repeated = ir.LazyTensor(load, dtype=ir.DataType.FLOAT16, shape=shape, cache=False, name=name)
    _rename(graph, scales, name)
    scales.const_value, scales.shape = repeated, shape
    return scales, size


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """An initialiser gets another name at its place among them, which decides what is written when."""
    kept = list(graph.initializers.values())
    graph.initializers.clear()
    value.name = name
    for one in kept:
        graph.register_initializer(one)


def _pack(stored: ir.Value, rows: int, groups: int, size: int, bits: int) -> None:
    """In place: the integers as B."""
    tensor, shape, name = stored.const_value, ir.Shape([rows, groups, size]), stored.name
    assert tensor is not None

    def load() -> ir.TensorProtocol:
        found = np.frombuffer(tensor.tobytes(), np.uint8) ^ _turned(bits)
        return ir.Tensor(found.reshape(shape.numpy()), name=name)

    stored.const_value = ir.LazyTensor(load, dtype=ir.DataType.UINT8, shape=shape, cache=False, name=name)
    stored.type, stored.shape = ir.TensorType(ir.DataType.UINT8), shape


def _turned(bits: int) -> np.uint8:
    """The highest bit of every integer in a byte."""
    return np.uint8(0x88 if bits == 4 else 0x80)


def _look_up(graph: ir.Graph, gather: ir.Node, scales: ir.Value, zero: int) -> None:
    """Rows of B, [B,S,G,n] of 8 bits each, less their zero and times their scales: in the place of what `quantise` wrote."""
    rows = gather.outputs[0]
    name = str(rows.name)
    product = next(node for node in graph if node.name == f"{name}.dequantised")
    found = ir.node("Gather", [scales, gather.inputs[1]], name=f"{name}.row_scales")
    parts = [found, ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{name}.whole")]
    parts.append(ir.node("Cast", [found.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}.row_scales.whole"))
    constants = {"zero": ir.tensor(float(zero)), "last": ir.tensor([-1]), "flat": ir.tensor([0, 0, -1])}
    made = {part: ir.node("Constant", [], {"value": value}, name=f"{name}.{part}") for part, value in constants.items()}
    made["zero"].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    signed = ir.node("Sub", [parts[1].outputs[0], made["zero"].outputs[0]], name=f"{name}.signed")
    column = ir.node("Unsqueeze", [parts[2].outputs[0], made["last"].outputs[0]], name=f"{name}.column")
    scaled = ir.node("Mul", [signed.outputs[0], column.outputs[0]], name=f"{name}.scaled")
    flat = ir.node("Reshape", [scaled.outputs[0], made["flat"].outputs[0]], name=f"{name}.rows")
    old, new = product.outputs[0], flat.outputs[0]
    new.name, new.shape, new.type = f"{name}.rows", old.shape, old.type
    rows.type, rows.shape, found.outputs[0].type = ir.TensorType(ir.DataType.UINT8), None, ir.TensorType(ir.DataType.FLOAT16)
    for cast in parts[1:]:
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(product, [*parts, *made.values(), signed, column, scaled, flat])
    ir.convenience.replace_all_uses_with(old, new)


def _array(value: ir.Value) -> NDArray[np.generic]:
    tensor = value.const_value
    assert tensor is not None
    return np.array(tensor.numpy())  # a copy: torch wants to be able to write
