"""What the forms of SparseMoE have in common: finding the nodes, taking their weights apart, writing standard operators."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from alize.errors import LoweringFailed
from alize.export.weights import StreamedWeight
from alize.optimize.round_to_integers import Integers

__all__ = [
    "APART",
    "PARTS",
    "Writer",
    "apart_matrices",
    "experts_of",
    "linear",
    "matrices_in",
    "replace_output",
    "single_matrices",
    "sparse_moes",
    "stacks",
    "top_k_of",
]

PARTS = ("gate_proj", "up_proj", "down_proj")
APART = ("gate_up_proj", "down_proj")
"""What is multiplied with where the experts are apart: gate and up of an expert are one matrix [2*I,M], the gate's rows first."""

_GATE_UP = re.compile(r"(model\.layers\.\d+\.mlp\.experts\.\d+)\.gate_up_proj\.weight")


def sparse_moes(model: ir.Model) -> list[ir.Node]:
    """The SparseMoE nodes, in the order of their layers."""
    return [node for node in model.graph if node.domain == "ai.alize" and node.op_type == "SparseMoE"]


def top_k_of(node: ir.Node) -> int:
    return node.attributes["top_k"].as_int()


def experts_of(node: ir.Node) -> int:
    """E, the static last axis of the router's logits."""
    logits = node.inputs[1]
    size = logits.shape[-1] if logits is not None and logits.shape is not None else None
    if not isinstance(size, int):
        raise LoweringFailed(f"{node.name}: its router's logits have {size} experts: the number has to be static")
    return size


def stacks(node: ir.Node) -> dict[str, tuple[ir.Value, StreamedWeight]]:
    """Part -> the initialiser [E,rows,columns] that the node reads, through a Cast to float32 or at once, and its weight."""
    found = {}
    for part, value in zip(PARTS, node.inputs[2:], strict=True):
        cast = None if value is None else value.producer()
        source = value if cast is None else cast.inputs[0] if cast.op_type == "Cast" else None
        weight = None if source is None else source.const_value
        if source is None or not isinstance(weight, StreamedWeight) or not weight.parts:
            raise LoweringFailed(f"{node.name}: its {part} does not come from the checkpoint: the graph was lowered before")
        found[part] = (source, weight)
    return found


def apart_matrices(weights: dict[str, tuple[ir.Value, StreamedWeight]]) -> dict[str, tuple[StreamedWeight, ...]]:
    """Of each of APART the matrices of all experts, from `stacks`."""
    gate_up, down = APART
    both = zip(weights["gate_proj"][1].parts, weights["up_proj"][1].parts, strict=True)
    return {
        gate_up: tuple(gate.above(up, str(gate.name).replace("gate_proj", gate_up)) for gate, up in both),
        down: weights["down_proj"][1].parts,
    }


def matrices_in(name: str, rows: int) -> list[tuple[str, slice]]:
    """The model's matrices in a stored one of so many rows, by their names: gate and up of an expert where both are one, else
    itself."""
    match = _GATE_UP.fullmatch(name)
    if match is None:
        return [(name, slice(None))]
    gate, up, _ = (f"{match[1]}.{part}.weight" for part in PARTS)
    return [(gate, slice(rows // 2)), (up, slice(rows // 2, None))]


def single_matrices(name: str, values: torch.Tensor | Integers) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """The same with their values, from those of the stored one [out,in]."""
    rows = len(values.values if isinstance(values, Integers) else values)
    for single, part in matrices_in(name, rows):
        yield single, values.rows(part) if isinstance(values, Integers) else values[part]


@dataclass
class Writer:
    """Appends nodes of standard operators before `place`; a node's first output bears its name."""

    graph: ir.Graph
    place: ir.Node

    def add(self, op_type: str, inputs: list[ir.Value], name: str, **attributes: int | list[int]) -> ir.Value:
        return self.add_all(op_type, inputs, [name], **attributes)[0]

    def add_all(self, op_type: str, inputs: list[ir.Value], names: list[str], **attributes: int | list[int]) -> list[ir.Value]:
        node = ir.node(op_type, inputs, attributes or None, num_outputs=len(names), name=names[0])
        for output, name in zip(node.outputs, names, strict=True):
            output.name = name
        self.graph.insert_before(self.place, node)
        return list(node.outputs)

    def constant(self, values: Any, name: str) -> ir.Value:
        """int64, of a number or of lists of numbers."""
        node = ir.node("Constant", [], {"value": ir.tensor(values, dtype=ir.DataType.INT64)}, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(self.place, node)
        return node.outputs[0]

    def weight(self, weight: StreamedWeight) -> ir.Value:
        """An initialiser as the hub has it: in its stored dtype, behind a Cast to float32."""
        value = ir.Value(name=weight.name, type=ir.TensorType(weight.dtype), shape=weight.shape, const_value=weight)
        self.graph.register_initializer(value)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{weight.name}.to_float32")
        output = cast.outputs[0]
        output.name, output.shape, output.type = f"{weight.name}.float32", weight.shape, ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(self.place, cast)
        return output


def linear(write: Writer, rows: ir.Value, weight: StreamedWeight, name: str) -> ir.Value:
    """rows [n,in] times weight [out,in]: MatMul behind a Transpose, which is how the hub writes every projection."""
    transposed = write.add("Transpose", [write.weight(weight)], f"{name}.transpose", perm=[1, 0])
    return write.add("MatMul", [rows, transposed], name)


def replace_output(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """`output` takes the place and the name of the node's, and the node goes."""
    old = node.outputs[0]
    ir.convenience.replace_all_uses_with(old, output)
    output.shape, output.type = old.shape, old.type
    name, old.name = old.name, f"{old.name}.replaced"
    output.name = name
    producer = output.producer()
    assert producer is not None
    producer.name = node.name
    graph.remove(node, safe=True)
