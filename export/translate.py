"""torch.export's graph -> ONNX: one short function for each operator that the model definitions use.

torch.onnx translates any model, but on the way it retraces the graph twice (decomposition, type promotion) only to leave this
one as it is, and it reaches RMSNormalization and RotaryEmbedding by a version conversion that inlines every function. What is
not written here, an operator or an argument of one, is refused by name.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import fx
from torch.export.graph_signature import InputKind

from alize.errors import ExportFailed
from alize.export.functions import DOMAIN, IR_VERSION
from alize.models import ops, rotary  # noqa: F401 - registers the operators of torch.ops.alize and torch.ops.onnx

__all__ = ["TRANSLATIONS", "translate"]


def translate(program: torch.export.ExportedProgram) -> ir.Model:
    """The traced graph, call by call: its inputs and outputs in order, its parameters as initialisers without data.

    Initialisers are named as the module's parameters and constants, all else as in the traced graph; so are the dimensions
    that the tracer kept free. Raises ExportFailed.
    """
    graph = ir.Graph([], [], nodes=[])
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    for call in program.graph.nodes:
        if call.op == "placeholder":
            values[call] = _placeholder(graph, call, specs[call.name], program.constants)
        elif call.op == "output":
            graph.outputs.extend(values[result] for result in call.args[0])
        elif call.target is operator.getitem:
            source, index = call.args
            values[call] = _describe(values[source][index], call)
        elif call.target not in _IGNORED:
            values[call] = _call(graph, call, [values[part] if isinstance(part, fx.Node) else part for part in call.args])
    return ir.Model(graph, ir_version=IR_VERSION)


def _placeholder(graph: ir.Graph, call: fx.Node, spec: Any, constants: Mapping[str, Any]) -> ir.Value:
    """A parameter (no data), a constant (with its data) or an input of the model."""
    value = _describe(ir.Value(), call)
    if spec.kind == InputKind.USER_INPUT:
        graph.inputs.append(value)
        return value
    if spec.kind not in (InputKind.PARAMETER, InputKind.CONSTANT_TENSOR):
        raise ExportFailed(f"{spec.target} is traced as a {spec.kind.name}: a definition may hold parameters and constants only")
    value.name = spec.target
    if spec.kind == InputKind.CONSTANT_TENSOR:
        value.const_value = TorchTensor(constants[spec.target], name=value.name)
    graph.initializers.add(value)
    return value


def _describe(value: ir.Value, call: fx.Node) -> ir.Value:
    """Gives a value the name, dtype and shape of what the traced graph computes by `call`."""
    traced = call.meta["val"]
    value.name, value.type = call.name, ir.TensorType(from_torch_dtype(traced.dtype))
    value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in traced.shape])
    return value


def _call(graph: ir.Graph, call: fx.Node, arguments: Sequence[Any]) -> Any:
    """What a call gives: a value, or the values that `getitem` chooses from."""
    translation = TRANSLATIONS.get(call.target)
    if translation is None:
        raise ExportFailed(f"{call.target} has no translation to ONNX, and the model definition calls it")
    writer = _Writer(graph, call)
    try:
        inspect.signature(translation).bind(writer, *arguments, **call.kwargs)
    except TypeError as error:
        raise ExportFailed(f"{call.target} is called with {call.args} {call.kwargs}: its translation has {error}") from error
    return translation(writer, *arguments)


class _Writer:
    """Appends the nodes of one call to the graph."""

    def __init__(self, graph: ir.Graph, call: fx.Node) -> None:
        self.graph = graph
        self.call = call

    def result(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """The node whose output is what the call gives."""
        return _describe(self._append(op_type, inputs, attributes, self.call.name), self.call)

    def helper(self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None) -> ir.Value:
        """A node on the way to it."""
        name = f"{self.call.name}.{op_type.lower()}"
        value = self._append(op_type, inputs, attributes, name)
        value.name = name
        return value

    def _append(self, op_type: str, inputs: Sequence[Any], attributes: Mapping[str, Any] | None, name: str) -> ir.Value:
        if not all(isinstance(value, ir.Value) for value in inputs):  # Python numbers, which torch promotes
            raise ExportFailed(
                f"{self.call.target} is called with {self.call.args}: its translation takes tensors, and floats beside float32"
            )
        node = ir.node(op_type, inputs, attributes, name=name)
        self.graph.append(node)
        return node.outputs[0]

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        return self.helper("Constant", [], {"value": ir.tensor(numbers, dtype=ir.DataType.INT64)})

    def number(self, number: float) -> ir.Value:
        """A Python float beside a float32 tensor: the one pair that torch does not promote to anything else."""
        return self.helper("Constant", [], {"value": ir.tensor(number, dtype=ir.DataType.FLOAT)})


def _same(write: _Writer, x: ir.Value) -> ir.Value:  # noqa: ARG001
    """A copy, where nothing is written to; a detachment, where nothing has a gradient."""
    return x


def _of_one(op_type: str) -> Callable[[_Writer, ir.Value], ir.Value]:
    def write_node(write: _Writer, x: ir.Value) -> ir.Value:
        return write.result(op_type, [x])

    return write_node


def _of_two(op_type: str) -> Callable[[_Writer, ir.Value, Any], ir.Value]:
    def write_node(write: _Writer, x: ir.Value, y: Any) -> ir.Value:
        return write.result(op_type, [x, write.number(y) if isinstance(y, float) and x.dtype == ir.DataType.FLOAT else y])

    return write_node


def _cast(write: _Writer, x: ir.Value, dtype: torch.dtype) -> ir.Value:
    return write.result("Cast", [x], {"to": from_torch_dtype(dtype)})


def _unsqueeze(write: _Writer, x: ir.Value, axis: int) -> ir.Value:
    return write.result("Unsqueeze", [x, write.integers([axis])])


def _transpose(write: _Writer, x: ir.Value, first: int, second: int) -> ir.Value:
    order = list(range(write.call.meta["val"].dim()))
    order[first], order[second] = order[second], order[first]
    return write.result("Transpose", [x], {"perm": order})


def _unflatten(write: _Writer, x: ir.Value, axis: int, sizes: Sequence[int]) -> ir.Value:  # noqa: ARG001
    return _reshape(write, x, axis)


def _flatten(write: _Writer, x: ir.Value, first: int) -> ir.Value:
    return _reshape(write, x, first)


def _reshape(write: _Writer, x: ir.Value, copied: int) -> ir.Value:
    """The leading `copied` axes stay as they are, whatever their sizes (0 says so); the others must be static."""
    sizes = list(write.call.meta["val"].shape[copied:])
    if copied < 0 or not all(isinstance(size, int) for size in sizes):
        raise ExportFailed(f"{write.call.target} at axis {copied}: the sizes {sizes} behind it are not static")
    return write.result("Reshape", [x, write.integers([0] * copied + sizes)])


def _embedding(write: _Writer, weight: ir.Value, indices: ir.Value) -> ir.Value:
    return write.result("Gather", [weight, indices], {"axis": 0})


def _linear(write: _Writer, x: ir.Value, weight: ir.Value) -> ir.Value:
    return write.result("MatMul", [x, write.helper("Transpose", [weight], {"perm": [1, 0]})])


def _silu(write: _Writer, x: ir.Value) -> ir.Value:
    return write.result("Mul", [x, write.helper("Sigmoid", [x])])


def _rms_norm(write: _Writer, x: ir.Value, shape: Sequence[int], weight: ir.Value, epsilon: float) -> ir.Value:
    return write.result("RMSNormalization", [x, weight], {"axis": -len(shape), "epsilon": epsilon})


def _rotary(write: _Writer, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    return write.result("RotaryEmbedding", [x, cos, sin], {"interleaved": 0})


def _attention(
    write: _Writer,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    attention_mask: ir.Value,
    window: int,
    scale: float,
) -> Sequence[ir.Value]:
    inputs = [query, key, value, past_key, past_value, attention_mask]
    attributes = {"window": window, "scale": scale}
    name = write.call.name
    node = ir.node("SlidingWindowAttention", inputs, attributes, domain=DOMAIN, num_outputs=3, name=name)
    write.graph.append(node)
    return node.outputs


def _experts(
    write: _Writer,
    hidden: ir.Value,
    router_logits: ir.Value,
    gate_proj: ir.Value,
    up_proj: ir.Value,
    down_proj: ir.Value,
    top_k: int,
) -> ir.Value:
    inputs = [hidden, router_logits, gate_proj, up_proj, down_proj]
    node = ir.node("SparseMoE", inputs, {"top_k": top_k}, domain=DOMAIN, name=write.call.name)
    write.graph.append(node)
    return _describe(node.outputs[0], write.call)


_aten = torch.ops.aten

# Checks that the tracer adds for itself.
_IGNORED = (_aten._assert_tensor_metadata.default,)

TRANSLATIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        _aten.add.Tensor: _of_two("Add"),
        _aten.cos.default: _of_one("Cos"),
        _aten.detach_.default: _same,
        _aten.div.Tensor: _of_two("Div"),
        _aten.embedding.default: _embedding,
        _aten.flatten.using_ints: _flatten,
        _aten.floor.default: _of_one("Floor"),
        _aten.lift_fresh_copy.default: _same,
        _aten.linear.default: _linear,
        _aten.log.default: _of_one("Log"),
        _aten.mul.Tensor: _of_two("Mul"),
        _aten.rms_norm.default: _rms_norm,
        _aten.silu.default: _silu,
        _aten.sin.default: _of_one("Sin"),
        _aten.to.dtype: _cast,
        _aten.transpose.int: _transpose,
        _aten.unflatten.int: _unflatten,
        _aten.unsqueeze.default: _unsqueeze,
        torch.ops.alize.sliding_window_attention.default: _attention,
        torch.ops.alize.sparse_moe.default: _experts,
        torch.ops.onnx.RotaryEmbedding.opset23: _rotary,
    }
)
"""Operator of the traced graph -> what writes a call of it."""
