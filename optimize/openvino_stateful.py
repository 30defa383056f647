"""Moves the cache from the graph's inputs and outputs into the state of its infer requests."""

from typing import Any

import numpy as np

from alize.errors import LoweringFailed

__all__ = ["make_stateful"]


def make_stateful(model: Any) -> int:
    """Each past input becomes ReadValue(empty) -> Gather(beam_idx), each present output an Assign. In place.

    model: openvino.Model with past_key_values.{i}.key|value and present.{i}.key|value. Adds the input beam_idx int32 [B]:
    the row that each row's cache is taken from, identity unless a client searches with beams. Returns the layers changed.
    """
    from openvino import Type
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    pasts = [parameter for parameter in model.get_parameters() if "past_key_values" in parameter.get_friendly_name()]
    if not pasts or len(pasts) % 2:
        raise LoweringFailed(f"make_stateful: {len(pasts)} past inputs, expected two for each layer")
    beam_idx = ops.parameter([-1], Type.i32, "beam_idx")
    beam_idx.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam_idx])
    axis = ops.constant(np.int64(0))
    for past in pasts:
        consumers = past.output(0).get_target_inputs()
        reordered = ops.gather(past, beam_idx, axis)
        for consumer in consumers:
            consumer.replace_source_output(reordered.output(0))
    names = {past.get_friendly_name(): past.get_friendly_name().replace("past_key_values", "present") for past in pasts}
    apply_make_stateful_transformation(model, names)
    _start_empty(model)
    return len(pasts) // 2


def _start_empty(model: Any) -> None:
    """Gives every ReadValue an initial value [B,K,0,D]: without one the plugin cannot compile the fused graph."""
    from openvino import opset13 as ops

    input_ids = next(parameter for parameter in model.get_parameters() if parameter.get_friendly_name() == "input_ids")
    batch = ops.gather(ops.shape_of(input_ids, "i64"), ops.constant(np.array([0], np.int64)), ops.constant(np.int64(0)))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            shape = node.get_output_partial_shape(0)
            sizes = [ops.constant(np.array([size], np.int64)) for size in (shape[1].get_length(), 0, shape[3].get_length())]
            empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, *sizes], 0))
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()
