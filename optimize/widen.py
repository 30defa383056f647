"""A graph in float16 or bfloat16 read in float32: the same nodes and the same stored weights, without the rounding in between."""

from pathlib import Path

import onnx
from onnx import TensorProto

__all__ = ["read_widened", "widened"]

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read_widened(path: Path) -> onnx.ModelProto:
    """The graph in PATH without its weights, in float32: as it is, where it computes in float32 already."""
    model = onnx.load(path, load_external_data=False)
    half = any(value.type.tensor_type.elem_type in _HALF for value in model.graph.input)
    return widened(model) if half else model


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """In place: every half-typed value becomes float32. Weights stay as they are stored, behind a Cast of their own."""
    graph = model.graph
    weights = {tensor.name: f"{tensor.name}.wide" for tensor in graph.initializer if tensor.data_type in _HALF}
    _widen(graph, weights)
    casts = [onnx.helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT) for name, wide in weights.items()]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _widen(graph: onnx.GraphProto, weights: dict[str, str]) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = weights.get(name, name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g, weights)
