"""Computes in float16 or bfloat16 what the hub computes in float32, as strongly typed engines take it: by the types alone.

A walk in the order of computation gives every value its type and puts a Cast wherever a node wants another:

    float32     norms, rotary embedding and its angles, routers and what chooses experts, logits: little work, all the precision
    half        matrix products, attention, caches, the residual stream
    as it comes what moves values (Reshape, Gather ...); adding and multiplying is half as soon as one side is

The hub's Casts of weights to float32 go, so a weight is multiplied with as it is stored.
"""

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed

__all__ = ["COMPUTED", "half_precision"]

COMPUTED = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_EXACT = {"RMSNormalization", "RotaryEmbedding", "Cos", "Sin", "Softmax", "TopK", "ReduceSum"}
_MOVES = {
    "Concat",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "ScatterElements",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_HALF = {"Attention", "GroupQueryAttention", "MatMul", "MatMulNBits", "TensorScatter"}
_MIXED = {"Add", "Div", "Mul", "Neg", "Sigmoid", "Sub"}
_PLAIN = {"And", "Constant", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
_PLAIN |= {"Range", "ReduceMax", "ReduceProd", "Shape"}  # of whole numbers, wherever the lowerings write them


def half_precision(weights: str) -> Callable[[ir.Model], int]:
    """A pass that computes in the half type of COMPUTED[weights]. Returns how many Casts it took; raises LoweringFailed for an
    operator whose types it does not know."""
    half = COMPUTED[weights]

    def apply(model: ir.Model) -> int:
        walk = _Walk(model.graph, half)
        for value in model.graph.inputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(half)
        for node in list(model.graph):
            walk.visit(node)
        for value in model.graph.outputs:
            if value.name == "logits":
                walk.widen(value)
        common.RemoveUnusedNodesPass()(model)
        return walk.casts

    apply.__name__ = f"half_precision_{weights}"
    return apply


class _Walk:
    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        self.graph, self.half = graph, half
        self.casts = 0
        self._cast: dict[tuple[str, ir.DataType], ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        kind = node.op_type
        if kind == "Cast":
            self._visit_cast(node)
        elif kind in _EXACT:
            self._type(node, self._inputs(node, ir.DataType.FLOAT) if _floats(node) else None)
        elif kind in _HALF:
            self._type(node, self._inputs(node, ir.DataType.FLOAT if _is_router(node) else self.half))
        elif kind in _MIXED:
            found = _floats(node)
            self._type(node, self._inputs(node, self.half if self.half in found else ir.DataType.FLOAT) if found else None)
        elif kind in _MOVES:
            first = node.inputs[0]
            self._type(node, first.dtype if first is not None else None)
            if kind == "ScatterElements" and first is not None and first.dtype in _FLOATS:
                self._inputs(node, first.dtype)
        elif kind == "DequantizeLinear":
            scales = node.inputs[1]
            self._type(node, scales.dtype if scales is not None else None)
        elif kind not in _PLAIN:
            raise LoweringFailed(f"half_precision: {node.name} is {kind}, whose types are not known here")

    def widen(self, logits: ir.Value) -> None:
        """The graph's output `logits`, in float32."""
        producer = logits.producer()
        assert producer is not None
        logits.name = "logits.half"
        cast = self._new_cast(logits, ir.DataType.FLOAT, "logits")
        cast.shape = logits.shape
        self.graph.outputs[list(self.graph.outputs).index(logits)] = cast
        node = cast.producer()
        assert node is not None
        self.graph.insert_after(producer, node)

    def _visit_cast(self, node: ir.Node) -> None:
        source, to = node.inputs[0], ir.DataType(node.attributes["to"].as_int())
        assert source is not None
        if source.dtype in _FLOATS and to in _FLOATS:  # the hub's own: it computes in float32 whatever is stored
            ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
        else:
            self._type(node, to)

    def _inputs(self, node: ir.Node, wanted: ir.DataType) -> ir.DataType:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in _FLOATS and value.dtype != wanted:
                node.replace_input_with(index, self._as(value, wanted))
        return wanted

    def _as(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        key = (str(value.name), wanted)
        if key not in self._cast:
            self._cast[key] = self._new_cast(value, wanted, f"{value.name}.{wanted.name.lower()}")
            node, producer = self._cast[key].producer(), value.producer()
            assert node is not None
            if producer is None:
                self.graph.insert_before(next(iter(self.graph)), node)
            else:
                self.graph.insert_after(producer, node)
        return self._cast[key]

    def _new_cast(self, value: ir.Value, wanted: ir.DataType, name: str) -> ir.Value:
        self.casts += 1
        node = ir.node("Cast", [value], {"to": wanted}, name=name)
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, ir.TensorType(wanted)
        return node.outputs[0]

    def _type(self, node: ir.Node, dtype: ir.DataType | None) -> None:
        for index, value in enumerate(node.outputs):
            integers = node.op_type == "TopK" and index == 1
            if dtype is not None and not integers:
                value.type = ir.TensorType(dtype)


def _floats(node: ir.Node) -> set[ir.DataType | None]:
    """The float types among its inputs'."""
    return {value.dtype for value in node.inputs if value is not None and value.dtype in _FLOATS}


def _is_router(node: ir.Node) -> bool:
    return node.outputs[0].name is not None and node.outputs[0].name.endswith(".router_logits")
