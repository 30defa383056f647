"""Consecutive layers cut from an IR, so that a model whose weights do not fit unpacked is run a slice at a time.

A slice is the sealed graph itself between two points of the residual stream: nothing in it is converted again. The mask and
the rotary angles are computed in each slice from the same inputs as in the whole.
"""

from typing import Any

from alize.errors import LoweringFailed

__all__ = ["HIDDEN", "Slices", "cut_layers", "stream_name"]

HIDDEN = "hidden"
"""The input [B,S,M] of a slice that does not begin with the embedding."""

Slices = tuple[tuple[int, int], ...]
"""(first, stop) of each slice, in order: all layers, without a gap."""


def stream_name(layer: int) -> str:
    """The tensor that holds the residual stream [B,S,M] behind the layer."""
    return f"layers.{layer}.mlp"


def cut_layers(model: Any, first: int, stop: int, layers: int) -> str:
    """Leaves of an openvino.Model of `layers` layers those from `first` to before `stop`, in place.

    The first slice has the embedding, the last one the head; the others take the residual stream as the input `hidden` and
    give it as their output. Returns the name of the output. Raises LoweringFailed where layers are tied by more than that.
    """
    if first:
        _begin_at(model, stream_name(first - 1))
    output = "logits" if stop == layers else stream_name(stop - 1)
    if stop < layers:
        there = model.get_results()
        model.add_outputs([output])
        for result in there:
            model.remove_result(result)
    for sink in model.get_sinks():
        if not first <= _layer(sink) < stop:
            model.remove_sink(sink)
    left = [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]
    if strays := [layer for layer in map(_layer, left) if not first <= layer < stop]:
        raise LoweringFailed(f"layers {first} to {stop - 1} cannot be cut out: they read the cache of layer {strays[0]}")
    kept = {_variable(node) for node in left}
    for variable in model.get_variables():
        if variable.info.variable_id not in kept:
            model.remove_variable(variable)
    model.validate_nodes_and_infer_types()
    return output


def _begin_at(model: Any, name: str) -> None:
    """What read the tensor reads the input `hidden` instead."""
    from openvino import opset13 as ops

    found = [value for node in model.get_ops() for value in node.outputs() if name in value.get_names()]
    if not found:
        raise LoweringFailed(f"the model has no tensor {name}: its layers cannot be told apart")
    hidden = ops.parameter(found[0].get_partial_shape(), found[0].get_element_type())
    hidden.output(0).get_tensor().set_names({HIDDEN})
    for reader in found[0].get_target_inputs():
        reader.replace_source_output(hidden.output(0))
    model.add_parameters([hidden])


def _layer(node: Any) -> int:
    """Of a ReadValue or Assign, whose variable is named past_key_values.{i}.keypresent.{i}.key"""
    return int(_variable(node).split(".")[1])


def _variable(node: Any) -> str:
    return str(node.get_attributes()["variable_id"])
