"""Stores matrices as integers behind DequantizeLinear: standard ONNX of opset 23, blocked along the input axis.

    weight -> MatMul    becomes    DequantizeLinear(integers, Cast(scales), zero points) -> MatMul
    Gather(table, ids)  becomes    Cast(Gather(integers, ids)) * Cast(Gather(scales, ids)), so that rows alone are converted

A build rounds every matrix once, before it lowers (`alize.optimize.rounded`); the graph then refers to what lies in its files, or
reads it from there. Without such a source a matrix is rounded when the first of its parts is written out, and what was not
asked for yet is kept until it is.
"""

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from alize.errors import LoweringFailed
from alize.export.weights import StreamedWeight
from alize.optimize.integer_products import product_name
from alize.optimize.passes import Pass
from alize.optimize.quantisation import Form, Quantisation
from alize.optimize.round_to_integers import Integers, pack_nibbles, quantised
from alize.optimize.rounded import Rounded
from alize.optimize.transpose_weights import SUFFIX

__all__ = ["SCALES", "SIGNS", "ZERO_POINTS", "float_part", "integer_part", "quantise", "tensor_name"]

SCALES, ZERO_POINTS, SIGNS = ".scales", ".zero_points", ".signs"
"""What is added to a weight's name. Signs, of scales that lost them: see `signs_behind_products`."""

_TYPES = {
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
}


def float_part(weights: str) -> str:
    """The float type that `store_weights` has to store: of integers, the one that they are found from."""
    return weights if Quantisation.parse(weights) is None else "fp32"


def integer_part(weights: str, rounded: Rounded | None = None) -> tuple[Pass, ...]:
    """The pass that rounds to integers, where `weights` names some."""
    chosen = Quantisation.parse(weights) if rounded is None else rounded.quantisation
    return () if chosen is None else (quantise(chosen, rounded),)


def quantise(quantisation: Quantisation, rounded: Rounded | None = None) -> Pass:
    """A pass that stores every matrix of a graph in float32 as `quantisation` has it; `store_weights("fp32")` goes before.

    rounded: the integers that were made already; without them they are made when they are written.

    A matrix that a MatMul reads as it is lies [in,out], any other [out,in]; a stack of experts [E,out,in] stays one. Names each
    MatMul for its weight, as `layers.0.mlp.up_proj`, and the one behind a tied table `lm_head`.
    """

    def apply(model: ir.Model) -> int:
        count = 0
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if not isinstance(tensor, StreamedWeight) or len(tensor.shape) < 2:
                continue
            if tensor.dtype != ir.DataType.FLOAT:
                raise LoweringFailed(f"quantise: {value.name} is {tensor.dtype.name}; its integers are found from float32")
            straight = all(use.node.op_type == "MatMul" for use in value.uses())
            shape = tensor.shape.numpy()
            name = tensor_name(str(value.name))
            form = quantisation.form(name, shape[::-1] if straight else shape)
            if form is not None:
                _replace(model.graph, value, _Matrix(tensor, form, name, transposed=straight, rounded=rounded), name)
                count += 1
        if not count:
            raise LoweringFailed("quantise: the graph has no matrices of a checkpoint")
        _keep_parts_together(model.graph)
        return count

    apply.__name__ = f"quantise_{str(quantisation).replace('-', '_')}"
    return apply


def tensor_name(stored: str) -> str:
    """The checkpoint's name of a matrix, whichever way it lies."""
    return stored.removesuffix(SUFFIX)


class _Matrix:
    """One matrix or stack, rounded or read when one of its parts is asked for, and no longer kept than until all of them were."""

    def __init__(
        self, weight: StreamedWeight, form: Form, name: str, *, transposed: bool, rounded: Rounded | None = None
    ) -> None:
        self.weight, self.form, self.name, self.transposed, self.rounded = weight, form, name, transposed, rounded
        *self.rows, self.columns = weight.shape.numpy()[:: -1 if transposed else 1]  # rows: [out] or [E,out]
        self._waiting: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, ir.LazyTensor | ir.ExternalTensor]:
        """The tensors "", SCALES and, unless symmetric, ZERO_POINTS: in the matrix's file, where they lie there so, else lazy."""
        stored = _TYPES[self.form.bits, self.form.symmetric]
        groups = self.columns // self.form.group
        small = tuple(self.rows) if self._by_row else (groups, *self.rows) if self.transposed else (*self.rows, groups)
        whole = (self.columns, *self.rows) if self.transposed else (*self.rows, self.columns)
        kinds = {"": (stored, whole), SCALES: (ir.DataType.FLOAT16, small)}
        if not self.form.symmetric:
            kinds[ZERO_POINTS] = (stored, small)
        if self.rounded is not None and not self.transposed and not self.weight.parts:
            places = zip(kinds.items(), self.rounded.places(self.name), strict=True)
            return {part: self._lying(part, *kind, *place) for (part, kind), place in places}
        return {part: self._lazy(part, dtype, shape) for part, (dtype, shape) in kinds.items()}

    def _lying(self, part: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int, length: int) -> ir.ExternalTensor:
        assert self.rounded is not None
        path, folder = self.rounded.path(self.name), self.rounded.pieces.folder
        name = f"{self.weight.name}{part}"
        location = path.relative_to(folder).as_posix()
        return ir.ExternalTensor(location, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder)

    @property
    def attributes(self) -> dict[str, int]:
        """Of the DequantizeLinear that reads them."""
        if self._by_row:
            return {"axis": 1 if self.transposed else 0}
        return {"axis": 0 if self.transposed else len(self.rows), "block_size": self.form.group}

    @property
    def _by_row(self) -> bool:
        """One scale a row, which ONNX has a form of its own for; of a stack it is a block as long as the row."""
        return self.columns == self.form.group and len(self.rows) == 1

    def _lazy(self, part: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        name = f"{self.weight.name}{part}"

        def load() -> ir.TensorProtocol:
            values = self._take(part).reshape(shape)
            if dtype.bitwidth == 4:
                return ir.PackedTensor(pack_nibbles(values).numpy(), dtype, shape=ir.Shape(shape), name=name)
            return TorchTensor(values, name=name)

        return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), cache=False, name=name)

    def _take(self, part: str) -> Tensor:
        if part not in self._waiting:
            self._waiting = self._rounded()
        return self._waiting.pop(part)

    def _rounded(self) -> dict[str, Tensor]:
        """The parts as they lie."""
        found = self._integers()
        parts = {"": found.values, SCALES: found.scales}
        if found.zero_points is not None:
            parts[ZERO_POINTS] = found.zero_points
        return {part: torch.t(values).contiguous() if self.transposed else values for part, values in parts.items()}

    def _integers(self) -> Integers:
        """[...,out,in]"""
        if self.rounded is None:
            matrix = self.weight.load()
            return quantised(self.name, torch.t(matrix) if self.transposed else matrix, self.form)
        if not self.weight.parts:
            return self.rounded(self.name)
        parts = [self.rounded(str(part.name)) for part in self.weight.parts]
        return Integers.above(parts) if len(self.rows) == 1 else Integers.stack(parts)


def _keep_parts_together(graph: ir.Graph) -> None:
    """Puts scales and zero points right behind their integers. In this order they are written, and a matrix that is rounded
    waits for no other: what is in memory does not grow with the number of layers."""
    values = dict(graph.initializers)
    places = {name: place for place, name in enumerate(values)}
    weights = {name: name.removesuffix(SCALES).removesuffix(ZERO_POINTS) for name in values}
    graph.initializers.clear()
    for name in sorted(values, key=lambda name: (places.get(weights[name], places[name]), places[name])):
        graph.initializers[name] = values[name]


def _replace(graph: ir.Graph, value: ir.Value, matrix: _Matrix, name: str) -> None:
    """Puts integers, scales and zero points in the place of the float32 initialiser."""
    lookups = [use for use in value.uses() if use.node.op_type == "Gather" and use.idx == 0]
    products = [use for use in value.uses() if use not in lookups]
    shape, stored = value.shape, {}
    for part, tensor in matrix.tensors().items():
        target = value if not part else ir.Value(name=tensor.name)
        target.const_value, target.type, target.shape = tensor, ir.TensorType(tensor.dtype), tensor.shape
        if part:
            graph.register_initializer(target)
        stored[part] = target
    for use in lookups:
        _look_up(graph, use.node, stored)
    if products:
        first = products[0].node
        scales = _cast(stored[SCALES], f"{value.name}{SCALES}.to_float32")
        inputs = [value, scales.outputs[0], *(stored[part] for part in stored if part == ZERO_POINTS)]
        node = ir.node("DequantizeLinear", inputs, matrix.attributes, name=f"{value.name}.dequantised")
        node.outputs[0].name, node.outputs[0].shape = f"{value.name}.float32", shape
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for use in products:
            use.node.replace_input_with(use.idx, node.outputs[0])
        graph.insert_before(first, [scales, node])
        _name_products(node.outputs[0], product_name(name))


def _look_up(graph: ir.Graph, gather: ir.Node, stored: dict[str, ir.Value]) -> None:
    """The rows that were looked up, each times its scale."""
    if ZERO_POINTS in stored:
        raise LoweringFailed(f"quantise: {stored[''].name} is looked up in, and has zero points")
    output = gather.outputs[0]
    name = str(output.name)
    rows = _cast(output, f"{name}.to_float32")
    found = ir.node("Gather", [stored[SCALES], gather.inputs[1]], name=f"{name}{SCALES}")
    scales = _cast(found.outputs[0], f"{name}{SCALES}.to_float32")
    axis = ir.node("Constant", [], {"value": ir.tensor([-1], dtype=ir.DataType.INT64)}, name=f"{name}.axis")
    column = ir.node("Unsqueeze", [scales.outputs[0], axis.outputs[0]], name=f"{name}{SCALES}.column")
    product = ir.node("Mul", [rows.outputs[0], column.outputs[0]], name=f"{name}.dequantised")
    product.outputs[0].type, product.outputs[0].shape, product.outputs[0].name = output.type, output.shape, f"{name}.float32"
    ir.convenience.replace_all_uses_with(output, product.outputs[0])
    rows.replace_input_with(0, output)
    output.type = stored[""].type
    graph.insert_after(gather, [rows, found, scales, axis, column, product])


def _cast(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=name)
    node.outputs[0].name, node.outputs[0].shape = f"{name}.output", value.shape
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _name_products(value: ir.Value, name: str) -> None:
    """Names the one MatMul that reads the matrix, through a Transpose or not."""
    readers = [use.node for use in value.uses()]
    readers += [use.node for node in readers if node.op_type == "Transpose" for use in node.outputs[0].uses()]
    products = [node for node in readers if node.op_type == "MatMul"]
    if len(products) == 1:
        products[0].name = name
