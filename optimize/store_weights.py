"""Chooses the dtype that weights are stored in; what is computed stays float32."""

from collections.abc import Callable

import onnx_ir as ir
import torch

from alize.errors import LoweringFailed, UsageError
from alize.export.weights import StreamedWeight

__all__ = ["PRECISIONS", "store_weights"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def store_weights(precision: str) -> Callable[[ir.Model], int]:
    """A pass that stores every matrix in `precision` and every vector (norm weights) in float32.

    Raises UsageError for a precision that is not in PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"weights {precision!r} can't be stored yet: choose one of {', '.join(PRECISIONS)}")

    def apply(model: ir.Model) -> int:
        count = 0
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, StreamedWeight):
                stored = tensor.to(PRECISIONS[precision if len(tensor.shape) > 1 else "fp32"])
                value.const_value, value.type = stored, ir.TensorType(stored.dtype)
                count += 1
        if not count:
            raise LoweringFailed("store_weights: the graph has no weights of a checkpoint")
        _retype_gathers(model)
        _drop_idle_casts(model)
        return count

    apply.__name__ = f"store_weights_{precision}"
    return apply


def _retype_gathers(model: ir.Model) -> None:
    """The rows that a Gather looks up have the dtype of the table."""
    for node in model.graph:
        if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            node.outputs[0].type = node.inputs[0].type


def _drop_idle_casts(model: ir.Model) -> None:
    """The hub casts every weight to float32; where it is stored so, the Cast says nothing."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype == ir.DataType.FLOAT and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
