"""SlidingWindowAttention -> TensorScatter into caches of static capacity, then Attention over all of them with a mask.

    present [B,K,C,D] = TensorScatter(past [B,K,C,D], new [B,K,S,D], cache_lengths [B])       written in place: one buffer
    visible [B,1,S,C] = j <= i and j > i - W        with i = cache_lengths + 0..S-1, the places of the new tokens, and j = 0..C-1

Row b's tokens are the first cache_lengths[b] of its buffer. What lies behind them is never seen, so rows may be padded on the
right: their padding is written behind the row's own tokens, and the next step writes over it. The input `cache_lengths` (int64
[B]) takes the place of attention_mask; where some layers have a window and others see everything, the former may have
forgotten tokens that the latter hold, and have an input of their own, `window_cache_lengths`.

The mask is explicit, since TensorRT ignores Attention's sequence lengths and aligns its causality with the upper left corner;
and it is linear: the window of a buffer that wraps around costs the fused kernel its skipping of hidden blocks.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import Writer
from alize.optimize.passes import Pass, attentions

__all__ = ["LENGTHS", "OPSET", "WINDOW_LENGTHS", "static_cache"]

LENGTHS, WINDOW_LENGTHS = "cache_lengths", "window_cache_lengths"
OPSET, IR_VERSION = 24, 12  # TensorScatter came with them


def static_cache(capacity: int, window_capacity: int) -> Pass:
    """A pass that gives full layers caches of `capacity` places and those with a window `window_capacity`."""

    def apply(model: ir.Model) -> int:
        graph, nodes = model.graph, attentions(model)
        if not nodes:
            raise LoweringFailed("static_cache: the graph has no SlidingWindowAttention")
        windows = [node.attributes["window"].as_int() for node in nodes]
        mixed = 0 in windows and any(windows)
        write = Writer(graph, next(iter(graph)))
        full = _lengths(graph, LENGTHS)
        sliding = _lengths(graph, WINDOW_LENGTHS) if mixed else full
        masks: dict[int, ir.Value] = {}
        for node, window in zip(nodes, windows, strict=True):
            places, lengths = (window_capacity, sliding) if window else (capacity, full)
            if window not in masks:
                masks[window] = _mask(write, lengths, places, window)
            _replace(graph, node, masks[window], lengths, places)
        graph.inputs.remove(next(value for value in graph.inputs if value.name == "attention_mask"))
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        model.opset_imports[""] = OPSET
        model.ir_version = IR_VERSION
        return len(nodes)

    apply.__name__ = f"static_cache_{capacity or window_capacity}"
    return apply


def _lengths(graph: ir.Graph, name: str) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(["batch_size"]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(value)
    return value


def _mask(write: Writer, lengths: ir.Value, capacity: int, window: int) -> ir.Value:
    """bool [B,1,S,C]"""
    name = f"visible.{window}" if window else "visible"
    input_ids = next(value for value in write.graph.inputs if value.name == "input_ids")
    zero, one = write.constant(0, f"{name}.zero"), write.constant(1, f"{name}.one")
    new = write.add("Squeeze", [write.add("Shape", [input_ids], f"{name}.new_1d", start=1, end=2)], f"{name}.new")
    steps = write.add("Range", [zero, new, one], f"{name}.steps")  # [S]
    wide = write.add("Unsqueeze", [lengths, write.constant([1], f"{name}.column")], f"{name}.lengths")  # [B,1]
    rows = write.add("Add", [wide, steps], f"{name}.rows")  # [B,S]
    i = write.add("Unsqueeze", [rows, write.constant([1, 3], f"{name}.axes")], f"{name}.i")  # [B,1,S,1]
    j = write.constant([[[list(range(capacity))]]], f"{name}.j")  # [1,1,1,C]
    visible = write.add("LessOrEqual", [j, i], f"{name}.causal")
    if window:
        first = write.add("Sub", [i, write.constant(window, f"{name}.window")], f"{name}.before")
        visible = write.add("And", [visible, write.add("Greater", [j, first], f"{name}.near")], name)
    return visible


def _replace(graph: ir.Graph, node: ir.Node, visible: ir.Value, lengths: ir.Value, capacity: int) -> None:
    query, key, value, *pasts, _ = node.inputs
    presents = []
    for past, new, old in zip(pasts, (key, value), node.outputs[1:], strict=True):
        assert past is not None and new is not None and past.shape is not None
        past.shape = ir.Shape(["batch_size", past.shape[1], capacity, past.shape[3]])
        scatter = ir.node("TensorScatter", [past, new, lengths], {"axis": -2, "mode": "linear"}, name=f"{old.name}.write")
        present = scatter.outputs[0]
        present.type, present.shape = old.type, past.shape
        graph.outputs[list(graph.outputs).index(old)] = present
        name, old.name = old.name, f"{old.name}.replaced"
        present.name = name
        graph.insert_before(node, scatter)
        presents.append(present)
    attributes = {"scale": node.attributes["scale"].as_float()}
    fused = ir.node("Attention", [query, *presents, visible], attributes, name=node.name)
    fused.outputs[0].type, fused.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, fused)
    ir.convenience.replace_all_uses_with(node.outputs[0], fused.outputs[0])
    graph.remove(node, safe=True)
