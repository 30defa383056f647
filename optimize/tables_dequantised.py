"""A table of integers is dequantised before rows are looked up in it, which TensorRT fuses; behind, it refuses the constant."""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.optimize.quantise import SCALES

__all__ = ["tables_dequantised"]


def tables_dequantised(model: ir.Model) -> int:
    """Gather(integers) * Gather(scales) -> Gather(DequantizeLinear(integers, scales)), one scale a row."""
    graph, count = model.graph, 0
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not table.is_initializer() or table.dtype != ir.DataType.INT8:
            continue
        scales = graph.initializers.get(f"{table.name}{SCALES}")
        products = [other for other in graph if other.name == f"{node.outputs[0].name}.dequantised"]
        if scales is None or len(products) != 1:
            raise LoweringFailed(f"tables_dequantised: {node.name} looks up integers whose scales are not found")
        name = f"{table.name}.rows"
        whole = ir.node("DequantizeLinear", [table, scales], {"axis": 0}, name=f"{name}.dequantised")
        whole.outputs[0].name, whole.outputs[0].shape = f"{name}.float16", table.shape
        whole.outputs[0].type = scales.type
        looked = ir.node("Gather", [whole.outputs[0], node.inputs[1]], {"axis": 0}, name=node.name)
        old = products[0].outputs[0]
        looked.outputs[0].name, looked.outputs[0].shape, looked.outputs[0].type = f"{name}.found", old.shape, scales.type
        graph.insert_before(products[0], [whole, looked])
        ir.convenience.replace_all_uses_with(old, looked.outputs[0])
        count += 1
    common.RemoveUnusedNodesPass()(model)
    return count
