"""Passes on the traced graph, each in place, each returning how many places it changed."""

import onnx_ir as ir

from alize.errors import ExportFailed

__all__ = ["name_interface", "name_layers", "slice_before_head"]


def name_interface(model: ir.Model) -> int:
    """Gives inputs, outputs and free dimensions the names that Optimum and Transformers.js use."""
    graph = model.graph
    layers = (len(graph.inputs) - 3) // 2
    if len(graph.inputs) != 3 + 2 * layers or len(graph.outputs) != 1 + 2 * layers:
        raise ExportFailed(f"the traced graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: not a decoder's")
    parts = [(i, part) for i in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "position_ids", "attention_mask"] + [f"past_key_values.{i}.{part}" for i, part in parts]
    outputs = ["logits"] + [f"present.{i}.{part}" for i, part in parts]
    constants = [value for value in graph.initializers.values() if value.const_value is not None]
    if len(constants) != 1:
        raise ExportFailed(f"the traced graph has {len(constants)} constants, not one, the inverse frequencies")
    constants[0].name = "inverse_frequencies"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    _name_dimensions(graph, layers)
    return len(inputs) + len(outputs)


def _name_dimensions(graph: ir.Graph, layers: int) -> None:
    """The tracer has a name of its own for each free axis of each input; here an axis is called by what it counts."""
    new, total = {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 1: "total_sequence_length"}
    past = {0: "batch_size", 2: "past_sequence_length"}
    names: dict[str | None, str] = {}
    for value, axes in zip(graph.inputs, [new, new, total] + [past] * (2 * layers), strict=True):
        assert value.shape is not None
        for axis, name in axes.items():
            size = value.shape[axis]
            if isinstance(size, int):
                raise ExportFailed(f"{value.name}: the tracer took {name} to be {size} always")
            names[size.value] = name
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else names.get(size.value, size) for size in value.shape])
    for present in graph.outputs[1:]:
        assert present.shape is not None
        present.shape = ir.Shape(["batch_size", present.shape[1], "total_sequence_length", present.shape[3]])


def name_layers(model: ir.Model) -> int:
    """Names by layer what a fusion is asserted on and what a failed validation is traced with.

    Nodes `layers.{i}.self_attn`, `layers.{i}.self_attn.rotary_query|rotary_key`, and each norm as its weight is called;
    values `layers.{i}.heads` [B,S,H*D], what each head attended to, and `layers.{i}.attention` and `layers.{i}.mlp`, the
    residual stream [B,S,M] after each half of a layer. Where the MLP is a mixture of experts: node `layers.{i}.moe`, values
    `layers.{i}.moe_input` [B,S,M], `layers.{i}.router_logits` [B,S,E] and `layers.{i}.moe` [B,S,M].
    """
    attentions = [node for node in model.graph if node.domain == "ai.alize" and node.op_type == "SlidingWindowAttention"]
    for i, node in enumerate(attentions):
        node.name = f"layers.{i}.self_attn"
        for value, part in zip(node.inputs[:2], ("query", "key"), strict=True):
            rotary = None if value is None else value.producer()
            if rotary is None or rotary.op_type != "RotaryEmbedding":
                raise ExportFailed(f"layer {i}: its {part} does not come from a rotary embedding")
            rotary.name = f"layers.{i}.self_attn.rotary_{part}"
        merged, after_attention = _merged_heads(node.outputs[0]), _next_add(node.outputs[0])
        merged.name = f"layers.{i}.heads"
        after_mlp = [use.node for use in after_attention.uses() if use.node.op_type == "Add"]
        if len(after_mlp) != 1:
            raise ExportFailed(f"layer {i}: the residual stream has {len(after_mlp)} adds after the attention, not 1")
        after_attention.name = f"layers.{i}.attention"
        after_mlp[0].outputs[0].name = f"layers.{i}.mlp"
    _name_experts(model)
    norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
    for norm in norms:
        weight = norm.inputs[1]
        assert weight is not None and weight.name is not None
        norm.name = weight.name.removeprefix("model.").removesuffix(".weight")
    return 6 * len(attentions) + len(norms)


def _name_experts(model: ir.Model) -> None:
    for node in model.graph:
        if node.domain == "ai.alize" and node.op_type == "SparseMoE":
            weight = _weight_behind(node.inputs[2])
            layer = weight.removeprefix("model.").removesuffix(".mlp.experts.gate_proj")
            node.name = f"{layer}.moe"
            for value, name in zip((*node.inputs[:2], node.outputs[0]), ("moe_input", "router_logits", "moe"), strict=True):
                assert value is not None
                value.name = f"{layer}.{name}"


def _weight_behind(value: ir.Value | None) -> str:
    if value is None or not value.is_initializer():
        raise ExportFailed(f"the experts' weights come from {value}, not from the checkpoint")
    return str(value.name)


def _merged_heads(value: ir.Value) -> ir.Value:
    """The output of the Reshape that lays the heads side by side."""
    transpose = _reader(value)
    reshape = _reader(transpose.outputs[0])
    if (transpose.op_type, reshape.op_type) != ("Transpose", "Reshape"):
        raise ExportFailed(f"{value.name} feeds {transpose.op_type} and {reshape.op_type} where its heads should be merged")
    return reshape.outputs[0]


def _next_add(value: ir.Value) -> ir.Value:
    """Follows the single use of each value down to the next Add's output."""
    while (node := _reader(value)).op_type != "Add":
        value = node.outputs[0]
    return node.outputs[0]


def _reader(value: ir.Value) -> ir.Node:
    """The one node that reads a value on its way from the attention to the residual stream."""
    uses = list(value.uses())
    if len(uses) != 1:
        raise ExportFailed(f"{value.name} feeds {len(uses)} nodes, not one, on the way from an attention to its residual add")
    return uses[0].node


def slice_before_head(model: ir.Model) -> int:
    """Adds the input `num_logits_to_keep` (int64 [1], default 0 = all): the head sees the last so many positions only.

    The input is backed by an initialiser, so a client that doesn't know it never sees it. Slicing from -n needs no case for
    0: -0 is the start.
    """
    graph = model.graph
    head = graph.outputs[0].producer()
    hidden = None if head is None else head.inputs[0]
    if head is None or hidden is None or head.op_type != "MatMul":
        raise ExportFailed("logits do not come from a MatMul: the head cannot be told from the rest")
    keep = ir.Value(name="num_logits_to_keep", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    keep.const_value = ir.tensor([0], dtype=ir.DataType.INT64, name=keep.name)
    graph.inputs.append(keep)
    graph.register_initializer(keep)
    start = ir.node("Neg", [keep], name="num_logits_to_keep.start")
    end = ir.node("Constant", [], {"value": ir.tensor([2**63 - 1], dtype=ir.DataType.INT64)}, name="num_logits_to_keep.end")
    axis = ir.node("Constant", [], {"value": ir.tensor([1], dtype=ir.DataType.INT64)}, name="num_logits_to_keep.axis")
    cut = ir.node("Slice", [hidden, start.outputs[0], end.outputs[0], axis.outputs[0]], name="num_logits_to_keep.slice")
    graph.insert_before(head, [start, end, axis, cut])
    head.replace_input_with(0, cut.outputs[0])
    logits = graph.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch_size", "num_logits", logits.shape[2]])
    return 1
