"""RotaryEmbedding on [B,S,H*D] instead of [B,H,S,D]: the standard operator takes both, so the split into heads can go."""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed

__all__ = ["rotary_before_split"]


def rotary_before_split(model: ir.Model) -> int:
    """Moves every RotaryEmbedding before the Reshape and Transpose that split the heads."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "RotaryEmbedding"]
    if not nodes:
        raise LoweringFailed("rotary_before_split: the graph has no RotaryEmbedding")
    for node in nodes:
        transpose = node.inputs[0].producer() if node.inputs[0] is not None else None
        split = transpose.inputs[0].producer() if transpose is not None and transpose.inputs[0] is not None else None
        if transpose is None or split is None or (transpose.op_type, split.op_type) != ("Transpose", "Reshape"):
            raise LoweringFailed(f"rotary_before_split: {node.name} does not follow the split into heads")
        if len(transpose.outputs[0].consumers()) != 1 or len(split.outputs[0].consumers()) != 1:
            raise LoweringFailed(f"rotary_before_split: {node.name} is not all that reads its heads")
        whole, heads = split.inputs[0], transpose.outputs[0].shape
        count = heads[1] if heads is not None else None
        assert whole is not None
        if not isinstance(count, int):
            raise LoweringFailed(f"rotary_before_split: {node.name} rotates {count} heads: the number has to be static")
        rotated = ir.node(
            "RotaryEmbedding",
            [whole, *node.inputs[1:]],
            {"interleaved": 0, "num_heads": count},
            name=node.name,
        )
        rotated.outputs[0].name = f"{whole.name}.rotated"
        rotated.outputs[0].type, rotated.outputs[0].shape = whole.type, whole.shape
        graph.insert_before(split, rotated)
        split.replace_input_with(0, rotated.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], transpose.outputs[0])
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    return len(nodes)
