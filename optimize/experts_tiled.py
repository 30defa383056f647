"""SparseMoE -> OpenVINO's "tiled" mixture of experts, the one spelling that its passes recognise.

    Tile(rows, E) -> batched MatMul by all gate_proj and up_proj -> silu(gate) * up -> batched MatMul by all down_proj
    -> times the router's weights, scattered into zeros [T,E] -> summed over E

Read as it stands this is dense: every expert sees every token. The CPU plugin fuses it to three GatherMatmul nodes a layer and
the GPU plugin to one of its own, which multiply by the chosen experts alone; check_structure asserts that they did. Written
as a conversion, because what the passes ask for (MatMul with a transposed constant, SiLU as x * sigmoid(x), a Reshape before
the product and one behind the router's Transpose) does not survive the way through ONNX.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import sparse_moes, stacks

__all__ = ["experts_tiled", "tiled_conversion"]


def experts_tiled(model: ir.Model) -> int:
    """Leaves the SparseMoE nodes to `tiled_conversion`, once it is sure that it can take them. Returns how many there are."""
    nodes = sparse_moes(model)
    if not nodes:
        raise LoweringFailed("experts_tiled: the graph has no SparseMoE")
    for node in nodes:
        stacks(node)
    return len(nodes)


def tiled_conversion() -> Callable[[Any], list[Any]]:
    """The conversion that `openvino.frontend.onnx.ConversionExtension` calls for each SparseMoE node."""

    def convert(context: Any) -> list[Any]:
        from openvino import opset13 as ops

        hidden, logits, gate_proj, up_proj, down_proj = (context.get_input(index) for index in range(5))
        layer = _layer(logits)
        experts, size = _static(gate_proj, 0), _static(gate_proj, 2)
        shape = ops.shape_of(hidden, "i64")
        rows = ops.reshape(hidden, _integers([-1, size]), special_zero=False)  # [T,M]
        tiled = ops.tile(rows, _integers([experts, 1]))
        tiled = ops.reshape(tiled, _integers([experts, -1, size]), special_zero=False)  # [E,T,M]
        gate = ops.matmul(tiled, gate_proj, False, True, name=f"{layer}.experts.gate_proj")  # [E,T,I]
        up = ops.matmul(tiled, up_proj, False, True, name=f"{layer}.experts.up_proj")
        inner = ops.multiply(ops.multiply(gate, ops.sigmoid(gate)), up)
        answers = ops.matmul(inner, down_proj, False, True, name=f"{layer}.experts.down_proj")  # [E,T,M]
        whole = ops.concat([_integers([experts]), shape], 0)
        answers = ops.reshape(answers, whole, special_zero=False)  # [E,B,S,M]
        chosen = _choose(logits, experts, context.get_attribute("top_k"))
        chosen.output(1).set_names({f"{layer}.experts"})
        shares = _shares(chosen, experts, shape)
        return [ops.reduce_sum(ops.multiply(answers, shares), ops.constant(np.int64(0)), keep_dims=False).output(0)]

    return convert


def _layer(logits: Any) -> str:
    """layers.{i}, from the name that the hub gave its router's logits."""
    suffix = ".router_logits"
    names = [name.removesuffix(suffix) for name in logits.get_names() if name.endswith(suffix)]
    if len(names) != 1:
        raise LoweringFailed(f"experts_tiled: the router's logits are called {sorted(logits.get_names())}, not layers.N{suffix}")
    return str(names[0])


def _choose(logits: Any, experts: int, top_k: int) -> Any:
    """TopK: the chosen logits float32 [T,k] and experts int64 [T,k]."""
    from openvino import opset13 as ops

    rows = ops.reshape(logits, _integers([-1, experts]), special_zero=False)  # [T,E]
    return ops.topk(rows, ops.constant(np.int64(top_k)), 1, "max", "value", index_element_type="i64")


def _shares(chosen: Any, experts: int, shape: Any) -> Any:
    """float32 [E,B,S,1]: the weight of each expert in each token's answer, 0 where it was not chosen."""
    from openvino import opset13 as ops

    weights = ops.softmax(chosen.output(0), 1)  # [T,k]: of all E, renormalised
    tokens = ops.gather(ops.shape_of(weights, "i64"), _integers([0]), ops.constant(np.int64(0)))
    nothing = ops.broadcast(ops.constant(np.float32(0)), ops.concat([tokens, _integers([experts])], 0))
    scattered = ops.scatter_elements_update(nothing, chosen.output(1), weights, ops.constant(np.int64(1)))  # [T,E]
    by_expert = ops.transpose(scattered, _integers([1, 0]))
    leading = ops.gather(shape, _integers([0, 1]), ops.constant(np.int64(0)))
    by_expert = ops.reshape(by_expert, ops.concat([_integers([experts]), leading], 0), special_zero=False)  # [E,B,S]
    return ops.unsqueeze(by_expert, ops.constant(np.int64(3)))


def _integers(values: list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def _static(value: Any, axis: int) -> int:
    dimension = value.get_partial_shape()[axis]
    if dimension.is_dynamic:
        raise LoweringFailed(f"experts_tiled: axis {axis} of {value.get_partial_shape()} is dynamic; experts must be static")
    return int(dimension.get_length())
