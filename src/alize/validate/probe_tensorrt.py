"""What validation asks a graph lowered for TensorRT besides logits: its weights, its residual stream, its experts alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from alize.optimize.expert_nodes import PARTS
from alize.optimize.lower_tensorrt import GRAPH_FILE
from alize.optimize.onnxruntime_integers import INTEGER_TYPES, read_integers
from alize.optimize.quantise import SCALES, tensor_name
from alize.optimize.round_to_integers import Integers
from alize.optimize.rounded import IntegerSource
from alize.optimize.transpose_weights import SUFFIX
from alize.optimize.widen import widened
from alize.validate.graph_proof import open_graph
from alize.validate.probe_onnxruntime import between

__all__ = ["cut_experts", "residual_stream", "stored_integers", "stored_weights"]

_STACK = re.compile(rf"(.*\.experts)\.({'|'.join(PARTS)})")
_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """Each weight's name and values, [out,in] as in the checkpoint, mapped from the file."""
    initializers = ir.load(folder / GRAPH_FILE).graph.initializers
    for stored, value in initializers.items():
        name, tensor = tensor_name(stored), value.const_value
        stack = _STACK.fullmatch(name)
        if tensor is None or not (stack or name.endswith(".weight")) or stored.endswith(SCALES):
            continue
        if tensor.dtype in INTEGER_TYPES:
            found: Any = read_integers(initializers, stored)
            yield from _parts(name, stack, found, len(found.values))
            continue
        words = torch.frombuffer(bytearray(tensor.tobytes()), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape.numpy())
        yield from _parts(name, stack, words.T if stored.endswith(SUFFIX) else words, len(words))


def _parts(name: str, stack: re.Match[str] | None, values: Any, experts: int) -> Iterator[tuple[str, Any]]:
    """The matrices of a stack by their names; a matrix by its own."""
    if stack is None:
        yield name, values
        return
    for e in range(experts):
        yield f"{stack[1]}.{e}.{stack[2]}.weight", values.rows(torch.tensor(e)) if isinstance(values, Integers) else values[e]


def stored_integers(folder: Path) -> IntegerSource:
    """Reads a matrix of integers by its name whenever it is asked for one."""
    initializers = ir.load(folder / GRAPH_FILE).graph.initializers
    places: dict[str, tuple[str, int | None]] = {}
    for stored, value in initializers.items():
        name, shape = tensor_name(stored), value.shape
        if value.dtype in INTEGER_TYPES and shape is not None:
            stack = _STACK.fullmatch(name)
            experts = range(shape.numpy()[0]) if stack else ()
            places |= {f"{stack[1]}.{e}.{stack[2]}.weight": (stored, e) for e in experts} if stack else {name: (stored, None)}

    def source(name: str) -> Integers:
        stored, expert = places[name]
        found = read_integers(initializers, stored)
        return found if expert is None else found.rows(torch.tensor(expert))

    return source


def residual_stream(folder: Path, tokens: NDArray[np.int64], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """[S,n] of each named point, after one pass over tokens [S]. Of tokens that no cache holds, S is bounded by its capacity."""
    model = widened(onnx.load(folder / GRAPH_FILE, load_external_data=False))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_graph(model, folder)
    size = len(tokens)
    feeds: dict[str, Any] = {
        "input_ids": tokens[None],
        "position_ids": np.arange(size, dtype=np.int64)[None],
        "logits_index": np.zeros((1, 1), np.int64),
    }
    for value in session.get_inputs():
        if value.name not in feeds:
            empty = np.zeros((1, *value.shape[1:]), np.float32) if len(value.shape) == 4 else np.zeros(1, np.int64)
            feeds[value.name] = empty
    return {name: found.reshape(size, -1) for name, found in zip(names, session.run(names, feeds), strict=True)}


def cut_experts(
    folder: Path, layer: int, hidden: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """One layer's router and experts, cut out of the graph and run by themselves: every other row as a decode step, since the
    graph decodes by other nodes than it reads a prompt with.

    hidden: float32 [n,M], what the layer's router and experts are given. Returns the router's logits float32 [n,E], the chosen
    experts int64 [n,top_k] and the output float32 [n,M]. Only this layer's weights are read.
    """
    start, names = f"layers.{layer}.moe_input", [f"layers.{layer}.{part}" for part in ("router_logits", "experts", "moe")]
    model = between(widened(onnx.load(folder / GRAPH_FILE, load_external_data=False)), start, names)
    session = open_graph(model, folder)
    known = {value.name for value in session.get_inputs()}

    def run(states: NDArray[np.float32]) -> list[NDArray[Any]]:
        given = {start: states, "input_ids": np.zeros(states.shape[:2], np.int64)}
        return [
            found.reshape(states.shape[0] * states.shape[1], -1) for found in session.run(names, {n: given[n] for n in known})
        ]

    whole, decoded = run(hidden[None]), run(np.ascontiguousarray(hidden[:, None]))
    for found, other in zip(whole, decoded, strict=True):
        found[1::2] = other[1::2]
    return whole[0], whole[1], whole[2]
