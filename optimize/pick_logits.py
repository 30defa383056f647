"""The head sees the tokens that are asked for: input `logits_index` (int64 [B,N]) in the place of num_logits_to_keep.

Row b's n-th logits are those of its new token logits_index[b,n], so rows of unequal lengths get the logits of their own last
tokens from one run.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import Writer

__all__ = ["LOGITS_INDEX", "pick_logits"]

LOGITS_INDEX = "logits_index"


def pick_logits(model: ir.Model) -> int:
    """Replaces the Slice that num_logits_to_keep controls by GatherND."""
    graph = model.graph
    cuts = [node for node in graph if node.name == "num_logits_to_keep.slice"]
    if len(cuts) != 1 or cuts[0].inputs[0] is None:
        raise LoweringFailed(f"pick_logits: the graph has {len(cuts)} slices before its head, not one")
    index = ir.Value(name=LOGITS_INDEX, shape=ir.Shape(["batch_size", "num_logits"]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(index)
    write = Writer(graph, cuts[0])
    column = write.add("Unsqueeze", [index, write.constant([2], f"{LOGITS_INDEX}.axis")], f"{LOGITS_INDEX}.column")  # [B,N,1]
    picked = write.add("GatherND", [cuts[0].inputs[0], column], f"{LOGITS_INDEX}.hidden", batch_dims=1)  # [B,N,M]
    ir.convenience.replace_all_uses_with(cuts[0].outputs[0], picked)
    common.RemoveUnusedNodesPass()(model)
    graph.inputs.remove(next(value for value in graph.inputs if value.name == "num_logits_to_keep"))
    graph.initializers.pop("num_logits_to_keep", None)
    return 1
