"""MatMul(x, Transpose(W)) -> MatMul(x, W'), W' stored transposed.

ONNX Runtime folds the Transpose at load, once into a copy of every weight and once more into the packed form that its
MatMul wants; stored as [in,out] it packs straight from the file.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.export.weights import StreamedWeight

__all__ = ["SUFFIX", "transpose_weights"]

SUFFIX = ".transposed"


def transpose_weights(model: ir.Model) -> int:
    """Stores transposed every matrix that one MatMul alone reads through a Transpose. A tied embedding stays as it is."""
    count = 0
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        chain = _transposed_use(value)
        if chain is None or not isinstance(tensor, StreamedWeight) or len(tensor.shape) != 2:
            continue
        weight = tensor.transposed(f"{value.name}{SUFFIX}")
        stored = ir.Value(name=weight.name, type=value.type, shape=weight.shape, const_value=weight)
        model.graph.register_initializer(stored)
        _rewire(value, stored, chain)
        del model.graph.initializers[str(value.name)]
        count += 1
    if not count:
        raise LoweringFailed("transpose_weights: no weight is read by one MatMul alone, through a Transpose")
    common.RemoveUnusedNodesPass()(model)
    return count


def _transposed_use(value: ir.Value) -> ir.Node | None:
    """The Transpose behind `value` (through a Cast to float32, if any), when nothing else reads `value`."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Cast":
        uses = list(uses[0].node.outputs[0].uses())
    node = uses[0].node if len(uses) == 1 else None
    return node if node is not None and node.op_type == "Transpose" else None


def _rewire(value: ir.Value, stored: ir.Value, transpose: ir.Node) -> None:
    use = next(iter(value.uses()))
    use.node.replace_input_with(0, stored)
    if use.node is transpose:
        ir.convenience.replace_all_uses_with(transpose.outputs[0], stored)
    else:
        use.node.outputs[0].shape = stored.shape
        ir.convenience.replace_all_uses_with(transpose.outputs[0], use.node.outputs[0])
