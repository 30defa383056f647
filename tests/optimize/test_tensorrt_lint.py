"""Each trap of TensorRT is refused by the node's name, and a graph without any passes."""

from typing import Any

import onnx_ir as ir
import pytest

from alize.errors import LoweringFailed
from alize.optimize.tensorrt_lint import lint

HALF = ir.DataType.FLOAT16


def value(name: str, shape: tuple[Any, ...], dtype: ir.DataType = HALF) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def graph(*, attention: dict[str, Any] | None = None, head: int = 64, **changes: Any) -> ir.Model:
    """One layer as it is lowered, with what `changes` names done otherwise."""
    capacity: Any = changes.get("capacity", 128)
    query, key = value("query", ("B", 4, "S", head)), value("key", ("B", 2, "S", head))
    past, lengths = value("past", ("B", 2, capacity, head)), value("lengths", ("B",), ir.DataType.INT64)
    mask = value("mask", ("B", 1, "S", 128), ir.DataType.BOOL)
    mode = changes.get("mode", "linear")
    scatter = ir.node("TensorScatter", [past, key, lengths], {"axis": -2, "mode": mode}, name="write")
    present = scatter.outputs[0]
    inputs = [query, present, present, changes.get("mask", mask), *changes.get("more", [])]
    fused = ir.node("Attention", inputs, attention or {}, name="layers.0.self_attn")
    nodes = [scatter, fused, *changes.get("nodes", [])]
    outputs = [fused.outputs[0]] if changes.get("hidden") else [fused.outputs[0], present]
    for output in outputs:
        output.name = output.name or "output"
    return ir.Model(ir.Graph([query, key, past, lengths, mask], outputs, nodes=nodes, opset_imports={"": 24}), ir_version=12)


def dequantised(dtype: ir.DataType, *, block: int = 32, zeros: bool = False, behind: str | None = None) -> list[ir.Node]:
    stored = value("stored", (64, 64), dtype)
    nodes = []
    if behind:
        nodes.append(ir.node(behind, [stored, value("ids", (2,), ir.DataType.INT64)], name="rows"))
        stored = nodes[0].outputs[0]
        stored.type = ir.TensorType(dtype)
    inputs = [stored, value("scales", (2, 64)), *([value("zeros", (2, 64), dtype)] if zeros else [])]
    return [*nodes, ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": block}, name="weight.dequantised")]


def test_a_graph_as_it_is_lowered_passes() -> None:
    lint(graph(nodes=dequantised(ir.DataType.INT4)))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (graph(more=[None, None, value("n", ("B",), ir.DataType.INT64)]), "nonpad_kv_seqlen is ignored"),
        (graph(attention={"is_causal": 1}), "upper left corner"),
        (graph(more=[value("p", ("B", 2, 8, 64))]), "takes no past"),
        (graph(mask=None), "it has no mask"),
        (graph(attention={"window": 6}), "its window is an attribute"),
        (graph(attention={"local_window_size": 6}), "its window is an attribute"),
        (graph(mode="circular"), "mode 'circular' is not supported"),
        (graph(capacity="P"), "the capacity has to be static"),
        (graph(hidden=True), "has to be an output of the graph"),
        (graph(head=8), "not of 8: use another target"),
        (graph(head=512), "not of 512"),
        (graph(nodes=dequantised(ir.DataType.INT4, block=0)), "groups have 0 values, int4 takes 128, 64, 32"),
        (graph(nodes=dequantised(ir.DataType.INT8, zeros=True)), "leave out --asymmetric"),
        (graph(nodes=dequantised(ir.DataType.UINT4)), "TensorRT takes INT4 and INT8"),
        (graph(nodes=dequantised(ir.DataType.INT8, behind="Gather")), "dequantised behind a Gather"),
        (graph(nodes=[ir.node("NonZero", [value("x", (4,))], name="selected")]), "NonZero 'selected': it fails"),
        (graph(nodes=[ir.node("QMoE", [value("x", (4,))], domain="com.microsoft", name="moe")]), "needs a plugin"),
    ],
)
def test_each_trap_is_refused_by_name(model: ir.Model, said: str) -> None:
    with pytest.raises(LoweringFailed, match=said):
        lint(model)
