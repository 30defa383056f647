"""Removes `num_logits_to_keep` for targets whose runtimes slice by themselves."""

import onnx_ir as ir

from alize.errors import LoweringFailed

__all__ = ["keep_all_logits"]


def keep_all_logits(model: ir.Model) -> int:
    """The head sees every position again; the input and its Slice disappear."""
    graph = model.graph
    head = graph.outputs[0].producer()
    cut = None if head is None or head.inputs[0] is None else head.inputs[0].producer()
    if head is None or cut is None or cut.op_type != "Slice":
        raise LoweringFailed("keep_all_logits: the head does not follow the hub's Slice")
    head.replace_input_with(0, cut.inputs[0])
    graph.remove(cut, safe=True)
    keep = graph.initializers.pop("num_logits_to_keep")
    for use in list(keep.uses()):
        graph.remove(use.node, safe=True)
    graph.inputs.remove(keep)
    logits = graph.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch_size", "sequence_length", logits.shape[2]])
    return 1
