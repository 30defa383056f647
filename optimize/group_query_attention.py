"""SlidingWindowAttention -> ONNX Runtime's fused com.microsoft.GroupQueryAttention.

The operator takes heads side by side ([B,S,H*D]), a window as an attribute, and the number of keys of each row; past and
present may share one buffer that is longer than what is in it. By itself it knows padding on the right only: what lies behind
a row's last key is not read. Padding on the left, which transformers and optimum use for batches, is hidden by an additive
attention bias. So a mask of either kind is right: row b's last key is its last 1, and every 0 before it is hidden.

Lengths cannot come from the shapes of such buffers, so where some layers have a window and others see everything, the graph
has the input `num_evicted` (int64 [B], default 0, backed by an initialiser): so many of row b's first positions are no longer
in the caches of the layers with a window, while attention_mask counts them still. To those layers the mask is moved left.
The CUDA provider's kernel refuses a bias: `group_query_attention_unbiased` is for it, and its masks are padded on the right only.
Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.passes import attentions, constant

__all__ = ["HIDDEN_SCORE", "group_query_attention", "group_query_attention_unbiased"]

HIDDEN_SCORE = -3.0e38  # finite: a padding row that sees no key gives an average, not NaN, and nothing reads what it gives


def group_query_attention(model: ir.Model) -> int:
    """Replaces every attention node; lengths and bias are computed from attention_mask once for all of them."""
    return _replace_all(model, biased=True)


def group_query_attention_unbiased(model: ir.Model) -> int:
    """The same where nothing is padded on the left: a row's first token is the first column of attention_mask."""
    return _replace_all(model, biased=False)


def _replace_all(model: ir.Model, *, biased: bool) -> int:
    graph, nodes = model.graph, attentions(model)
    if not nodes:
        raise LoweringFailed("group_query_attention: the graph has no SlidingWindowAttention")
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    input_ids = next(value for value in graph.inputs if value.name == "input_ids")
    full = _keys(graph, mask, input_ids, biased=biased)
    windows = [node.attributes["window"].as_int() for node in nodes]
    mixed = 0 in windows and any(windows)
    sliding = _keys(graph, _moved_mask(graph, mask), input_ids, biased=biased, prefix="evicted.") if mixed else full
    for node, window in zip(nodes, windows, strict=True):
        _replace(graph, node, sliding if window else full)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    model.opset_imports["com.microsoft"] = 1
    return len(nodes)


@dataclass(frozen=True)
class _Keys:
    """Which keys a layer reads. last_index: int32 [B], of each row's last key; total: int32 scalar, the mask's width;
    bias: float32 [B,1,S,total], 0 for a key that is a token, HIDDEN_SCORE for padding; None where none is on the left."""

    last_index: ir.Value
    total: ir.Value
    bias: ir.Value | None


def _keys(graph: ir.Graph, mask: ir.Value, input_ids: ir.Value, *, biased: bool, prefix: str = "") -> _Keys:
    """mask: int64 [B,total]. prefix: of the nodes' names."""
    last_index, total = _row_lengths(graph, mask, f"{prefix}row_lengths")
    bias = _padding_bias(graph, mask, input_ids, f"{prefix}padding_bias") if biased else None
    return _Keys(last_index, total, bias)


def _moved_mask(graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """int64 [B,total]: row b of the mask without its first num_evicted[b] columns, as wide as the longest row needs.

    The width is the mask's own less what the longest row has lost, so that with 0 everywhere this is the mask itself. Rows
    that lose less are not longer for it: the mask is padded with zeros on the right, which is all they take from there.
    """
    evicted = ir.Value(name="num_evicted", shape=ir.Shape(["evicted_rows"]), type=ir.TensorType(ir.DataType.INT64))
    evicted.const_value = ir.tensor([0], dtype=ir.DataType.INT64, name=evicted.name)
    graph.inputs.append(evicted)
    graph.register_initializer(evicted)
    nodes: list[ir.Node] = []

    def write(op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes, name=f"moved_mask.{name}"))
        return nodes[-1].outputs[0]

    def number(values: int | list[int], name: str) -> ir.Value:
        nodes.append(constant(values, f"moved_mask.{name}"))
        return nodes[-1].outputs[0]

    zero, one, rows = number(0, "zero"), number(1, "one"), number([1], "rows")
    width = write("Squeeze", [write("Shape", [mask], "shape", start=1, end=2)], "width")
    seen = write("Mul", [mask, write("Range", [zero, width, one], "index")], "seen")
    last = write("ReduceMax", [seen, rows], "last", keepdims=0)  # [B]
    longest = write("ReduceMax", [last], "longest", keepdims=0)
    longest_left = write("ReduceMax", [write("Sub", [last, evicted], "left")], "longest_left", keepdims=0)
    total = write("Add", [write("Sub", [width, longest], "behind"), longest_left], "total")
    total_1d = write("Reshape", [total, rows], "total_1d")
    pads = write("Concat", [number([0, 0, 0], "no_pads"), total_1d], "pads", axis=0)
    padded = write("Pad", [mask, pads], "padded")  # [B,width+total]
    columns = write("Range", [zero, total, one], "columns")
    places = write("Add", [columns, write("Unsqueeze", [evicted, rows], "by_row")], "places")  # [B or 1,total]
    batch = write("Shape", [mask], "batch", start=0, end=1)
    every = write("Expand", [places, write("Concat", [batch, total_1d], "sizes", axis=0)], "every")
    moved = write("GatherElements", [padded, every], "moved", axis=1)
    graph.insert_before(next(iter(graph)), nodes)
    return moved


def _row_lengths(graph: ir.Graph, mask: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
    """seqlens_k int32 [B]: the index of each row's last key; total_sequence_length int32 scalar: the mask's width."""
    axis, zero, one = constant([1], f"{name}.axis"), constant(0, f"{name}.zero"), constant(1, f"{name}.one")
    shape = ir.node("Shape", [mask], {"start": 1, "end": 2}, name=f"{name}.shape")
    width = ir.node("Squeeze", [shape.outputs[0]], name=f"{name}.width")
    total = ir.node("Cast", [width.outputs[0]], {"to": ir.DataType.INT32}, name=f"{name}.total")
    index = ir.node("Range", [zero.outputs[0], width.outputs[0], one.outputs[0]], name=f"{name}.index")
    seen = ir.node("Mul", [mask, index.outputs[0]], name=f"{name}.seen")
    last = ir.node("ReduceMax", [seen.outputs[0], axis.outputs[0]], {"keepdims": 0}, name=f"{name}.last")
    last_index = ir.node("Cast", [last.outputs[0]], {"to": ir.DataType.INT32}, name=f"{name}.seqlens_k")
    graph.insert_before(next(iter(graph)), [axis, zero, one, shape, width, total, index, seen, last, last_index])
    return last_index.outputs[0], total.outputs[0]


def _padding_bias(graph: ir.Graph, mask: ir.Value, input_ids: ir.Value, name: str) -> ir.Value:
    """float32 [B,1,S,P+S]: 0 for a key that is a token, HIDDEN_SCORE for padding."""
    real = ir.node("Cast", [mask], {"to": ir.DataType.BOOL}, name=f"{name}.real")
    shown = constant(0.0, f"{name}.shown", dtype=ir.DataType.FLOAT)
    hidden = constant(HIDDEN_SCORE, f"{name}.hidden", dtype=ir.DataType.FLOAT)
    scores = ir.node("Where", [real.outputs[0], shown.outputs[0], hidden.outputs[0]], name=f"{name}.scores")
    middle, single = constant([1, 2], f"{name}.middle"), constant([1], f"{name}.single")
    wide = ir.node("Unsqueeze", [scores.outputs[0], middle.outputs[0]], name=f"{name}.wide")
    batch = ir.node("Shape", [input_ids], {"start": 0, "end": 1}, name=f"{name}.batch")
    new = ir.node("Shape", [input_ids], {"start": 1, "end": 2}, name=f"{name}.new")
    width = ir.node("Shape", [mask], {"start": 1, "end": 2}, name=f"{name}.width")
    sizes = [batch.outputs[0], single.outputs[0], new.outputs[0], width.outputs[0]]
    shape = ir.node("Concat", sizes, {"axis": 0}, name=f"{name}.shape")
    bias = ir.node("Expand", [wide.outputs[0], shape.outputs[0]], name=f"{name}.bias")
    nodes = [real, shown, hidden, scores, middle, single, wide, batch, new, width, shape, bias]
    graph.insert_before(next(iter(graph)), nodes)
    return bias.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, keys: _Keys) -> None:
    query, key, value, past_key, past_value, _ = node.inputs
    flat = [_heads_side_by_side(graph, node, tensor) for tensor in (query, key, value)]
    heads, kv_heads = _heads(query), _heads(key)
    _check_head_size(node, past_key)
    window = node.attributes["window"].as_int()
    fused = ir.node(
        "GroupQueryAttention",
        [*flat, past_key, past_value, keys.last_index, keys.total, *([] if keys.bias is None else [None, None, None, keys.bias])],
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


def _check_head_size(node: ir.Node, past_key: ir.Value | None) -> None:
    """The kernel of the CPU provider takes head sizes in steps of 8 only, and says so when it runs."""
    size = past_key.shape[3] if past_key is not None and past_key.shape is not None else None
    if isinstance(size, int) and size % 8:
        raise LoweringFailed(
            f"group_query_attention: {node.name} has head size {size}, the engine takes multiples of 8 only: "
            "build for another target"
        )


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
    transposes = list(node.outputs[0].consumers())
    merges = [merge for transpose in transposes for merge in transpose.outputs[0].consumers()]
    kinds = [consumer.op_type for consumer in (*transposes, *merges)]
    if kinds != ["Transpose", "Reshape"]:
        raise LoweringFailed(f"group_query_attention: {node.name} feeds {', '.join(kinds)}: not its merged heads alone")
    (transpose,), (merge,) = transposes, merges
    ir.convenience.replace_all_uses_with(merge.outputs[0], output)
    output.name, output.type, output.shape = merge.outputs[0].name, merge.outputs[0].type, merge.outputs[0].shape
    graph.remove([transpose, merge], safe=True)
