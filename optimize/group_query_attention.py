"""SlidingWindowAttention -> ONNX Runtime's fused com.microsoft.GroupQueryAttention.

The operator takes heads side by side ([B,S,H*D]), a window as an attribute, and the number of keys of each row; past and
present may share one buffer that is longer than what is in it. It assumes right padding: row b holds
attention_mask[b].sum() tokens, and what lies behind them in the buffer is not read. Specification:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.passes import attentions, constant

__all__ = ["group_query_attention"]


def group_query_attention(model: ir.Model) -> int:
    """Replaces every attention node; one pair of length inputs is computed from attention_mask for all of them."""
    graph = model.graph
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    last_index, total = _row_lengths(graph, mask)
    nodes = attentions(model)
    for node in nodes:
        _replace(graph, node, last_index, total)
    common.RemoveUnusedNodesPass()(model)
    model.opset_imports["com.microsoft"] = 1
    return len(nodes)


def _row_lengths(graph: ir.Graph, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [B]: each row's tokens, less one; total_sequence_length int32 scalar: the longest row's."""
    axis = constant([1], "row_lengths.axis")
    one = constant([1], "row_lengths.one")
    count = ir.node("ReduceSum", [mask, axis.outputs[0]], {"keepdims": 0}, name="row_lengths.count")
    last = ir.node("Sub", [count.outputs[0], one.outputs[0]], name="row_lengths.last")
    last_index = ir.node("Cast", [last.outputs[0]], {"to": ir.DataType.INT32}, name="row_lengths.seqlens_k")
    shape = ir.node("Shape", [mask], {"start": 1, "end": 2}, name="row_lengths.shape")
    scalar = ir.node("Squeeze", [shape.outputs[0]], name="row_lengths.scalar")
    total = ir.node("Cast", [scalar.outputs[0]], {"to": ir.DataType.INT32}, name="row_lengths.total")
    first = next(iter(graph))
    graph.insert_before(first, [axis, one, count, last, last_index, shape, scalar, total])
    return last_index.outputs[0], total.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, last_index: ir.Value, total: ir.Value) -> None:
    query, key, value, past_key, past_value, _ = node.inputs
    flat = [_heads_side_by_side(graph, node, tensor) for tensor in (query, key, value)]
    heads, kv_heads = _heads(query), _heads(key)
    window = node.attributes["window"].as_int()
    fused = ir.node(
        "GroupQueryAttention",
        [*flat, past_key, past_value, last_index, total],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": node.attributes["scale"].as_float(),
            "local_window_size": window if window else -1,
        },
        domain="com.microsoft",
        num_outputs=3,
        name=node.name,
    )
    graph.insert_before(node, fused)
    for old, new in zip(node.outputs[1:], fused.outputs[1:], strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        graph.outputs[list(graph.outputs).index(old)] = new
    _take_merged(graph, node, fused.outputs[0])
    graph.remove(node, safe=True)


def _heads(value: ir.Value | None) -> int:
    """H (or K) of [B,H,S,D]."""
    if value is None or value.shape is None or not isinstance(value.shape[1], int):
        raise LoweringFailed(f"group_query_attention: {value} has no static number of heads")
    return value.shape[1]


def _heads_side_by_side(graph: ir.Graph, node: ir.Node, value: ir.Value | None) -> ir.Value:
    """[B,H,S,D] -> [B,S,H*D]; undoes the split where that is all that lies between."""
    assert value is not None
    transpose = value.producer()
    split = transpose.inputs[0].producer() if transpose is not None and transpose.inputs[0] is not None else None
    if transpose is not None and split is not None and (transpose.op_type, split.op_type) == ("Transpose", "Reshape"):
        whole = split.inputs[0]
        assert whole is not None
        return whole
    back = ir.node("Transpose", [value], {"perm": [0, 2, 1, 3]}, name=f"{value.name}.transposed")
    shape = constant([0, 0, -1], f"{value.name}.merged_shape")
    merged = ir.node("Reshape", [back.outputs[0], shape.outputs[0]], name=f"{value.name}.merged")
    graph.insert_before(node, [back, shape, merged])
    return merged.outputs[0]


def _take_merged(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """The fused node's output has its heads side by side already: drops the Transpose and Reshape that did that."""
    transpose = next(iter(node.outputs[0].uses())).node
    merge = next(iter(transpose.outputs[0].uses())).node
    if (transpose.op_type, merge.op_type) != ("Transpose", "Reshape"):
        raise LoweringFailed(
            f"group_query_attention: {node.name} feeds {transpose.op_type}, {merge.op_type}: not its merged heads"
        )
    ir.convenience.replace_all_uses_with(merge.outputs[0], output)
    output.name, output.type, output.shape = merge.outputs[0].name, merge.outputs[0].type, merge.outputs[0].shape
    graph.remove([transpose, merge], safe=True)
