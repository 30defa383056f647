"""Refuses a graph that TensorRT would build and compute something else with, or refuse without saying where. See docs/nvidia.md.

Each rule was seen: built with a warning at most, and wrong; or an error of the builder that names no node.
"""

from collections.abc import Callable, Iterator

import onnx_ir as ir

from alize.errors import LoweringFailed
from alize.optimize.quantisation import GROUPS

__all__ = ["RULES", "lint"]

_INTEGERS = (ir.DataType.INT4, ir.DataType.INT8)
_HEADS = range(16, 257, 8)  # head sizes that a fused kernel was built for


def lint(model: ir.Model) -> None:
    """Raises LoweringFailed naming the first node that breaks a rule, and the remedy."""
    for node in model.graph.all_nodes():
        for rule in RULES:
            for problem in rule(node):
                raise LoweringFailed(f"TensorRT would misread {node.op_type} {node.name!r}: {problem}")


def _sequence_lengths(node: ir.Node) -> Iterator[str]:
    if node.op_type == "Attention" and _input(node, 6) is not None:
        yield "its nonpad_kv_seqlen is ignored with a mere warning: hide padding in the mask"


def _causal(node: ir.Node) -> Iterator[str]:
    if node.op_type == "Attention" and _number(node, "is_causal"):
        yield "is_causal is aligned with the upper left corner, wrong behind any cache: write causality into the mask"


def _caches_of_its_own(node: ir.Node) -> Iterator[str]:
    if node.op_type == "Attention" and (len(node.outputs) > 1 or _input(node, 4) is not None or _input(node, 5) is not None):
        yield "it takes no past and gives no present: write caches by TensorScatter"


def _mask(node: ir.Node) -> Iterator[str]:
    if node.op_type == "Attention" and _input(node, 3) is None:
        yield "it has no mask, so that keys behind a row's last are seen: give it one of all places of the cache"


def _window(node: ir.Node) -> Iterator[str]:
    """A window that is an attribute, as other engines' operators have it, is dropped by what does not know the attribute."""
    if node.op_type in ("Attention", "GroupQueryAttention", "SlidingWindowAttention") and _number(node, "window") + _number(
        node, "local_window_size"
    ):
        yield "its window is an attribute, which is dropped: write it into the mask"


def _ring(node: ir.Node) -> Iterator[str]:
    if node.op_type == "TensorScatter" and _text(node, "mode", "linear") != "linear":
        yield f"mode {_text(node, 'mode', 'linear')!r} is not supported: write linearly, and shift the cache when it is full"


def _scatter(node: ir.Node) -> Iterator[str]:
    if node.op_type != "TensorScatter":
        return
    past, graph = _input(node, 0), node.graph
    shape = None if past is None else past.shape
    if past is None or past.producer() is not None or past.is_initializer():
        yield "its cache has to be an input of the graph"
    elif shape is None or not isinstance(shape[2], int):
        yield f"its cache has the shape {shape}: the capacity has to be static"
    if graph is not None and node.outputs[0] not in graph.outputs:
        yield "what it writes has to be an output of the graph, bound to the cache's own address"


def _groups(node: ir.Node) -> Iterator[str]:
    if node.op_type != "DequantizeLinear":
        return
    stored, zero = _input(node, 0), _input(node, 2)
    if zero is not None:
        yield "it has zero points, which fail: leave out --asymmetric"
    if stored is not None and stored.dtype not in _INTEGERS:
        yield f"its values are {stored.dtype}, TensorRT takes INT4 and INT8"
    if stored is not None and stored.dtype == ir.DataType.INT4 and _number(node, "block_size") not in GROUPS:
        sizes = ", ".join(map(str, GROUPS))
        yield f"its groups have {_number(node, 'block_size')} values, int4 takes {sizes}: choose --weights int8"


def _heads(node: ir.Node) -> Iterator[str]:
    query = _input(node, 0)
    if node.op_type == "Attention" and query is not None and query.shape is not None:
        size = query.shape[-1]
        if isinstance(size, int) and size not in _HEADS:
            yield f"fused kernels take heads of {_HEADS[0]}, {_HEADS[1]} ... {_HEADS[-1]}, not of {size}: use another target"


def _gathered(node: ir.Node) -> Iterator[str]:
    producer = value.producer() if (value := _input(node, 0)) is not None else None
    if node.op_type == "DequantizeLinear" and producer is not None and producer.op_type == "Gather":
        yield "integers are dequantised behind a Gather, which fails: dequantise first, it is fused"


def _foreign(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"domain {node.domain} needs a plugin: lower it to standard operators"
    if node.op_type == "NonZero":
        yield "it fails without a plugin: select by TopK and Gather"


RULES: tuple[Callable[[ir.Node], Iterator[str]], ...] = (
    _sequence_lengths,
    _causal,
    _caches_of_its_own,
    _mask,
    _window,
    _ring,
    _scatter,
    _groups,
    _heads,
    _gathered,
    _foreign,
)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default
