"""Each operator of a traced graph: what it becomes, and what is refused by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from alize.errors import ExportFailed
from alize.export.translate import TRANSLATIONS, translate
from alize.models.rotary import apply_rotary
from tests.export.hubs import onnx_session

DYNAMIC = torch.export.Dim.DYNAMIC


class Wrapped(nn.Module):
    def __init__(self, function: Callable[..., Tensor], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.names = [f"weight_{index}" for index in range(len(weights))]
        for name, weight in zip(self.names, weights, strict=True):
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.function(*inputs, *(getattr(self, name) for name in self.names))
        return result if isinstance(result, tuple) else (result,)


def translated(function: Callable[..., Tensor], *inputs: Tensor, weights: Sequence[Tensor] = ()) -> ir.Model:
    """B and S of every input are free."""
    shapes = ({0: DYNAMIC, 1: DYNAMIC},) * len(inputs)
    program = torch.export.export(Wrapped(function, weights), inputs, dynamic_shapes=(shapes,), strict=False)
    model = translate(program)
    model.opset_imports[""] = 23
    for initializer in model.graph.initializers.values():
        if initializer.const_value is None:
            initializer.const_value = ir.tensor(weights[int(str(initializer.name).removeprefix("weight_"))].numpy())
    return model


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


CALLS: dict[str, tuple[Callable[..., Tensor], list[Tensor], list[Tensor], list[str]]] = {
    # name -> function, inputs, weights, operators of the graph
    "add": (torch.add, [random(2, 3, 4), random(2, 3, 4)], [], ["Add"]),
    "mul": (torch.mul, [random(2, 3, 4), random(2, 3, 4)], [], ["Mul"]),
    "add a float": (lambda x: x + 1.5, [random(2, 3)], [], ["Constant", "Add"]),
    "divide by a float": (lambda x: x / 3.0, [random(2, 3)], [], ["Constant", "Div"]),
    "div": (torch.div, [random(2, 3, 4), 2 + random(2, 3, 4).abs()], [], ["Div"]),
    "floor": (torch.floor, [3 * random(2, 3)], [], ["Floor"]),
    "log": (torch.log, [random(2, 3).abs()], [], ["Log"]),
    "cos": (torch.cos, [random(2, 3)], [], ["Cos"]),
    "sin": (torch.sin, [random(2, 3)], [], ["Sin"]),
    "silu": (F.silu, [random(2, 3, 4)], [], ["Sigmoid", "Mul"]),
    "unsqueeze": (lambda x: x.unsqueeze(2), [random(2, 3)], [], ["Constant", "Unsqueeze"]),
    "transpose": (lambda x: x.transpose(1, 2), [random(2, 3, 4, 5)], [], ["Transpose"]),
    "unflatten": (lambda x: x.unflatten(2, (-1, 4)), [random(2, 3, 8)], [], ["Constant", "Reshape"]),
    "flatten": (lambda x: x.flatten(2), [random(2, 3, 4, 5)], [], ["Constant", "Reshape"]),
    "cast": (lambda x: x.float(), [torch.arange(6).reshape(2, 3)], [], ["Cast"]),
    "linear": (F.linear, [random(2, 3, 4)], [random(5, 4)], ["Transpose", "MatMul"]),
    "embedding": (lambda i, w: F.embedding(input=i, weight=w), [torch.arange(6).reshape(2, 3)], [random(7, 4)], ["Gather"]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w, 1e-5), [random(2, 3, 4)], [random(4)], ["RMSNormalization"]),
    "constant": (lambda x: x * torch.tensor([0.1, 0.2, 0.3]), [random(2, 5, 3)], [], ["Mul"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator(name: str, tmp_path: Path) -> None:
    """One call becomes these nodes, and they compute the same for sizes that were not traced."""
    function, inputs, weights, expected = CALLS[name]
    model = translated(function, *inputs, weights=weights)
    assert [node.op_type for node in model.graph] == expected
    ir.save(model, tmp_path / "model.onnx")
    larger = [torch.cat([torch.cat([x, x], 0)] * 3, 1) for x in inputs]
    feeds = {str(value.name): x.numpy() for value, x in zip(model.graph.inputs, larger, strict=True)}
    (found,) = onnx_session(tmp_path / "model.onnx").run(None, feeds)
    np.testing.assert_allclose(found, function(*larger, *weights).numpy(), rtol=1e-6, atol=1e-6)


def test_rotary_embedding(tmp_path: Path) -> None:
    """One node, half-split; cos and sin are inputs, not a table."""
    x, cos, sin = random(2, 3, 5, 8), random(2, 5, 4), random(2, 5, 4)
    shapes = (({0: DYNAMIC, 2: DYNAMIC}, *[{0: DYNAMIC, 1: DYNAMIC}] * 2),)
    program = torch.export.export(Wrapped(apply_rotary, []), (x, cos, sin), dynamic_shapes=shapes, strict=False)
    model = translate(program)
    model.opset_imports[""] = 23
    (node,) = model.graph
    assert (node.op_type, node.domain, len(node.inputs)) == ("RotaryEmbedding", "", 3)
    ir.save(model, tmp_path / "model.onnx")
    feeds = dict(zip([str(value.name) for value in model.graph.inputs], (x.numpy(), cos.numpy(), sin.numpy()), strict=True))
    (found,) = onnx_session(tmp_path / "model.onnx").run(None, feeds)
    np.testing.assert_allclose(found, apply_rotary(x, cos, sin).numpy(), rtol=0, atol=1e-6)


REFUSED: dict[str, tuple[Callable[..., Tensor], list[Tensor], str]] = {
    # name -> function of an input [B,S,...] and of a weight [4]
    "operator": (lambda x, w: x.tanh(), [random(2, 3)], r"aten\.tanh\.default has no translation to ONNX"),
    "keyword": (lambda x, w: torch.add(x, x, alpha=2), [random(2, 3)], r"aten\.add\.Tensor is called with .*'alpha': 2"),
    "argument": (lambda x, w: F.linear(x, w.unsqueeze(1), w), [random(2, 3, 1)], r"aten\.linear\.default is called with"),
    "missing argument": (lambda x, w: F.rms_norm(x, (4,), w), [random(2, 3, 4)], r"aten\.rms_norm\.default is called with"),
    "integer": (lambda x, w: x * 2, [random(2, 3)], r"aten\.mul\.Tensor is called with .*2.*takes tensors, and floats"),
    "promotion": (lambda x, w: x * 2.0, [torch.ones(2, 3, dtype=torch.int64)], r"aten\.mul\.Tensor is called with .*2\.0"),
    "end of flatten": (lambda x, w: x.flatten(2, 3), [random(2, 3, 4, 5, 6)], r"aten\.flatten\.using_ints is called with"),
    "free axis": (lambda x, w: x.flatten(1), [random(2, 3, 4)], r"aten\.flatten\.using_ints at axis 1: the sizes .* not static"),
    "negative axis": (lambda x, w: x.unflatten(-1, (-1, 2)), [random(2, 3, 4)], r"aten\.unflatten\.int at axis -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_written_is_refused(name: str) -> None:
    function, inputs, message = REFUSED[name]
    with pytest.raises(ExportFailed, match=message):
        translated(function, *inputs, weights=[random(4)])


def test_a_buffer_is_refused() -> None:
    """It would be neither a weight that the checkpoint holds nor a constant of the definition."""
    module = Wrapped(lambda x: x, [])
    module.register_buffer("table", torch.ones(3))
    module.function = lambda x: x * module.table
    program = torch.export.export(module, (random(2, 3),), strict=False)
    with pytest.raises(ExportFailed, match="table is traced as a BUFFER"):
        translate(program)


def test_values_have_the_names_types_and_shapes_of_the_trace() -> None:
    model = translated(lambda x, w: F.silu(F.linear(x, w)), random(2, 3, 4), weights=[random(5, 4)])
    assert list(model.graph.initializers) == ["weight_0"]
    linear = next(node for node in model.graph if node.op_type == "MatMul")
    assert linear.name == linear.outputs[0].name == "linear"
    assert linear.outputs[0].dtype == ir.DataType.FLOAT
    shape = linear.outputs[0].shape
    assert shape is not None and shape[2] == 5
    assert shape[:2] == model.graph.inputs[0].shape[:2]  # type: ignore[index]


def test_every_translation_is_of_an_operator_with_one_overload_named() -> None:
    assert {str(target) for target in TRANSLATIONS} >= {"alize.sliding_window_attention.default", "onnx.RotaryEmbedding.opset23"}
    assert all(isinstance(target, torch._ops.OpOverload) for target in TRANSLATIONS)
