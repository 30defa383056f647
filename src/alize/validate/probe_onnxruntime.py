"""What validation asks an ONNX Runtime artifact besides logits: its weights, its residual stream, its experts alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from alize.optimize.expert_nodes import matrices_in, single_matrices
from alize.optimize.lower_onnxruntime import MODEL_FILE
from alize.optimize.onnxruntime_integers import INTEGER_TYPES, read_integers
from alize.optimize.round_to_integers import Integers
from alize.optimize.rounded import IntegerSource
from alize.optimize.transpose_weights import SUFFIX
from alize.optimize.widen import read_widened
from alize.validate.graph_proof import open_graph

__all__ = ["between", "cut_experts", "residual_stream", "stored_integers", "stored_weights"]

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """Each weight's name and values, [out,in] as in the checkpoint, mapped from the file."""
    model = ir.load(folder / MODEL_FILE)
    for stored, value in model.graph.initializers.items():
        name = stored.removesuffix(SUFFIX)
        tensor = value.const_value
        if tensor is not None and name.endswith(".weight") and tensor.dtype in INTEGER_TYPES:
            yield from single_matrices(name, read_integers(model.graph.initializers, stored))
        elif tensor is not None and name.endswith(".weight"):
            dtype = _DTYPES[tensor.dtype]
            words = torch.frombuffer(bytearray(tensor.tobytes()), dtype=dtype)
            values = words.reshape(value.shape.numpy()) if value.shape is not None else words
            yield from single_matrices(name, values.T if stored.endswith(SUFFIX) else values)


def stored_integers(folder: Path) -> IntegerSource:
    """Reads a matrix of integers by its name whenever it is asked for one."""
    initializers = ir.load(folder / MODEL_FILE).graph.initializers
    places = {
        name: (rows, stored)
        for stored, value in initializers.items()
        if value.dtype in INTEGER_TYPES and value.shape is not None
        for name, rows in matrices_in(stored.removesuffix(SUFFIX), value.shape.numpy()[-1 if stored.endswith(SUFFIX) else 0])
    }

    def source(name: str) -> Integers:
        rows, stored = places[name]
        return read_integers(initializers, stored).rows(rows)

    return source


def residual_stream(folder: Path, tokens: NDArray[np.int64], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """[S,n] of each named point, after one pass over tokens [S]."""
    model = read_widened(folder / MODEL_FILE)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_graph(model, folder)
    size = len(tokens)
    feeds: dict[str, Any] = {
        "input_ids": tokens[None],
        "position_ids": np.arange(size, dtype=np.int64)[None],
        "attention_mask": np.ones((1, size), np.int64),
    }
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return {name: found.reshape(size, -1) for name, found in zip(names, session.run(names, feeds), strict=True)}


def cut_experts(
    folder: Path, layer: int, hidden: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """One layer's router and experts, cut out of the graph and run by themselves.

    hidden: float32 [n,M], what the layer's router and experts are given. Returns the router's logits float32 [n,E], the chosen
    experts int64 [n,top_k] and the output float32 [n,M]. Only this layer's weights are read.
    """
    start, names = f"layers.{layer}.moe_input", [f"layers.{layer}.{part}" for part in ("router_logits", "experts", "moe")]
    session = open_graph(between(read_widened(folder / MODEL_FILE), start, names), folder)
    given = {start: hidden[None], "input_ids": np.zeros((1, len(hidden)), np.int64)}
    found = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
    logits, experts, output = (array.reshape(len(hidden), -1) for array in found)
    return logits, experts, output


def between(model: onnx.ModelProto, start: str, ends: list[str]) -> onnx.ModelProto:
    """The model from the value `start`, which becomes an input float32, to the values `ends`."""
    graph, makers = model.graph, {name: node for node in model.graph.node for name in node.output}
    reached, waiting = {start}, list(ends)
    while waiting:
        name = waiting.pop()
        if name and name not in reached:
            reached.add(name)
            waiting += _read(makers[name]) if name in makers else []
    kept = [node for node in graph.node if start not in node.output and reached & set(node.output)]
    inputs = [onnx.helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, None)]
    inputs += [value for value in graph.input if value.name in reached]
    kinds = [onnx.TensorProto.INT64 if name.endswith(".experts") else onnx.TensorProto.FLOAT for name in ends]
    outputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in zip(ends, kinds, strict=True)]
    weights = [tensor for tensor in graph.initializer if tensor.name in reached]
    part = onnx.helper.make_graph(kept, "experts", inputs, outputs, weights)
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def _read(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, also inside its branches; what these make themselves is nobody's output and goes nowhere."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in _read(part)]
    return [*node.input, *inner]
