"""What a pass is, and how a lowering's list of them is run.

A pass rewrites an `onnx_ir.Model` in place and returns how many places it changed. One file a pass, named for what it does;
a lowering is a visible tuple of passes. A pass that has to apply and does not raises LoweringFailed saying why.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

__all__ = ["Pass", "attentions", "constant", "drop_functions", "run", "write", "write_around"]

Pass = Callable[[ir.Model], int]


def run(model: ir.Model, passes: Sequence[Pass]) -> dict[str, int]:
    """Runs the passes in order. Returns name -> changed places, which the build record keeps."""
    return {step.__name__: step(model) for step in passes}


def attentions(model: ir.Model) -> list[ir.Node]:
    """The SlidingWindowAttention nodes, in the order of their layers."""
    return [node for node in model.graph if node.domain == "ai.alize" and node.op_type == "SlidingWindowAttention"]


def constant(values: int | float | list[int], name: str, *, dtype: ir.DataType = ir.DataType.INT64) -> ir.Node:
    """A Constant node with one named output."""
    node = ir.node("Constant", [], {"value": ir.tensor(values, dtype=dtype)}, name=name)
    node.outputs[0].name = name
    return node


def drop_functions(model: ir.Model) -> int:
    """Removes the bodies of operators that the lowering replaced (or that a conversion extension will)."""
    count = len(model.functions)
    model.functions.clear()
    if not any(node.domain == "ai.alize" for node in model.graph):
        model.opset_imports.pop("ai.alize", None)
    return count


def write(model: ir.Model, path: Path) -> None:
    """Streams PATH and PATH.data, one weight in memory at a time."""
    ir.save(model, path, external_data=f"{path.name}.data")


def write_around(model: ir.Model, path: Path) -> None:
    """The same for a scratch file: tensors that lie in files of PATH's folder already stay there and are referred to."""
    moved: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for value in model.graph.initializers.values():
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
            moved.append((value, value.const_value))
    written = ir.external_data.convert_tensors_to_external([tensor for _, tensor in moved], path.parent, f"{path.name}.data")
    for (value, _), lying in zip(moved, written, strict=True):
        value.const_value = lying
    try:
        ir.save(model, path)
    finally:
        for value, tensor in moved:
            value.const_value = tensor
