"""Consecutive layers cut from a graph for ONNX Runtime; see openvino_slices.py, which does the same for an IR."""

import onnx

__all__ = ["cut_layers"]


def cut_layers(model: onnx.ModelProto, first: int, stop: int, layers: int) -> tuple[onnx.ModelProto, str, str]:
    """A model of the layers from `first` to before `stop`, of all `layers`. Weights stay where the model's external data are.

    Returns it with the names of its input (`input_ids`, or the residual stream [B,S,M] that the layer before gives) and of its
    output (that of the last layer, or `logits`).
    """
    if (first, stop) == (0, layers):  # as it is, whatever it lacks
        return model, "input_ids", "logits"
    graph = model.graph
    start = f"layers.{first - 1}.mlp" if first else "input_ids"
    output = "logits" if stop == layers else f"layers.{stop - 1}.mlp"
    presents = [f"present.{layer}.{part}" for layer in range(first, stop) for part in ("key", "value")]
    reached = _reached(graph, start, [output, *presents])
    nodes = [node for node in graph.node if start not in node.output and reached & set(node.output)]
    inputs = [value for value in graph.input if value.name in reached]
    if first:
        inputs.append(onnx.helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, None))
    known = {value.name: value for value in graph.output}
    stream = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    outputs = [known.get(output, stream), *(known[name] for name in presents)]
    weights = [tensor for tensor in graph.initializer if tensor.name in reached]
    part = onnx.helper.make_graph(nodes, graph.name, inputs, outputs, weights)
    made = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    return made, start, output


def _reached(graph: onnx.GraphProto, start: str, ends: list[str]) -> set[str]:
    """The values that `ends` are computed from, `start` being one and nothing before it."""
    makers = {name: node for node in graph.node for name in node.output}
    reached, waiting = {start}, list(ends)
    while waiting:
        name = waiting.pop()
        if name and name not in reached:
            reached.add(name)
            waiting += makers[name].input if name in makers else []
    return reached
