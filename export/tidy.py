"""Passes on the traced graph, each in place, each returning how many places it changed."""

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from torch._subclasses.fake_tensor import FakeTensor

from alize.errors import ExportFailed

__all__ = [
    "copy_leading_dimensions",
    "drop_fake_weights",
    "fold_constants",
    "name_interface",
    "name_layers",
    "slice_before_head",
]


def drop_fake_weights(model: ir.Model) -> int:
    """Weights traced under FakeTensorMode have a shape and no data: leaves them so, for `attach_weights` to fill."""
    fakes = [value for value in model.graph.initializers.values() if isinstance(_raw(value), FakeTensor)]
    for value in fakes:
        value.const_value = None
    return len(fakes)


def _raw(value: ir.Value) -> object:
    return getattr(value.const_value, "raw", None)


def fold_constants(model: ir.Model) -> int:
    """Folds what torch.onnx left unfolded (shape arithmetic, casts of scalars) and drops what nothing uses.

    Weights are left alone: only inputs of up to 1,024 bytes are folded.
    """
    before = model.graph.num_nodes()
    optimizer.fold_constants(model, input_size_limit=1024, output_size_limit=4096)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return before - model.graph.num_nodes()


def copy_leading_dimensions(model: ir.Model) -> int:
    """Reshapes [B,S,...] whose target is computed from the input's own B and S copy them instead: [0,0,...] constants."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "Reshape":
            continue
        target = node.inputs[1].producer() if node.inputs[1] is not None else None
        if target is None or target.op_type != "Concat" or len(target.inputs) < 3:
            continue
        tail = [_scalar(value) for value in target.inputs[2:]]
        if any(size is None for size in tail):
            continue
        shape = ir.tensor([0, 0, *(size for size in tail if size is not None)], dtype=ir.DataType.INT64)
        constant = ir.node("Constant", [], {"value": shape}, name=f"{node.name}.shape")
        model.graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes.pop("allowzero", None)
        count += 1
    common.RemoveUnusedNodesPass()(model)
    return count


def _scalar(value: ir.Value | None) -> int | None:
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return int(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def name_interface(model: ir.Model) -> int:
    """Gives inputs and outputs the names and symbolic shapes that Optimum and Transformers.js use."""
    graph = model.graph
    layers = (len(graph.inputs) - 3) // 2
    if len(graph.inputs) != 3 + 2 * layers or len(graph.outputs) != 1 + 2 * layers:
        raise ExportFailed(f"the traced graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: not a decoder's")
    parts = [(i, part) for i in range(layers) for part in ("key", "value")]
    inputs = ["input_ids", "position_ids", "attention_mask"] + [f"past_key_values.{i}.{part}" for i, part in parts]
    outputs = ["logits"] + [f"present.{i}.{part}" for i, part in parts]
    if "clone" in graph.initializers:  # the only constant of the definitions that is not a parameter
        graph.initializers["clone"].name = "inverse_frequencies"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name
    new, total = ("batch_size", "sequence_length"), ("batch_size", "total_sequence_length")
    for value, dims in zip(graph.inputs[:3], (new, new, total), strict=True):
        value.shape = ir.Shape(dims)
    for index in range(2 * layers):
        past, present = graph.inputs[3 + index], graph.outputs[1 + index]
        assert past.shape is not None
        past.shape = ir.Shape(["batch_size", past.shape[1], "past_sequence_length", past.shape[3]])
        present.shape = ir.Shape(["batch_size", past.shape[1], "total_sequence_length", past.shape[3]])
    return len(inputs) + len(outputs)


def name_layers(model: ir.Model) -> int:
    """Names by layer what a fusion is asserted on and what a failed validation is traced with.

    Nodes `layers.{i}.self_attn`, `layers.{i}.self_attn.rotary_query|rotary_key`, and each norm as its weight is called;
    values `layers.{i}.heads` [B,S,H*D], what each head attended to, and `layers.{i}.attention` and `layers.{i}.mlp`, the
    residual stream [B,S,M] after each half of a layer.
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
    norms = [node for node in model.graph if node.op_type == "RMSNormalization"]
    for norm in norms:
        weight = norm.inputs[1]
        assert weight is not None and weight.name is not None
        norm.name = weight.name.removeprefix("model.").removesuffix(".weight")
    return 6 * len(attentions) + len(norms)


def _merged_heads(value: ir.Value) -> ir.Value:
    """The output of the Reshape that lays the heads side by side."""
    transpose = next(iter(value.uses())).node
    reshape = next(iter(transpose.outputs[0].uses())).node
    if (transpose.op_type, reshape.op_type) != ("Transpose", "Reshape"):
        raise ExportFailed(f"{value.name} feeds {transpose.op_type} and {reshape.op_type} where its heads should be merged")
    return reshape.outputs[0]


def _next_add(value: ir.Value) -> ir.Value:
    """Follows the single use of each value down to the next Add's output."""
    while True:
        uses = list(value.uses())
        if len(uses) != 1:
            raise ExportFailed(f"{value.name} feeds {len(uses)} nodes where an attention's output projection was expected")
        value = uses[0].node.outputs[0]
        if uses[0].node.op_type == "Add":
            return value


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
