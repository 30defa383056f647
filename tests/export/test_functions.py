"""A function body alone against the operator of PyTorch that it specifies."""

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from alize.export.functions import function_bodies
from alize.models.ops import sliding_window_attention
from tests.export.hubs import onnx_session

INPUTS = {
    "query": ("B", "H", "S", "D"),
    "key": ("B", "K", "S", "D"),
    "value": ("B", "K", "S", "D"),
    "past_key": ("B", "K", "P", "D"),
    "past_value": ("B", "K", "P", "D"),
    "attention_mask": ("B", "T"),
}
OUTPUTS = {"output": ("B", "H", "S", "D"), "present_key": ("B", "K", "T", "D"), "present_value": ("B", "K", "T", "D")}


def model(window: int, scale: float) -> onnx.ModelProto:
    """One node of the operator, every size free."""
    kinds = {name: onnx.TensorProto.INT64 if name == "attention_mask" else onnx.TensorProto.FLOAT for name in INPUTS}
    inputs = [onnx.helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in INPUTS.items()]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in OUTPUTS.items()]
    node = onnx.helper.make_node(
        "SlidingWindowAttention", list(INPUTS), list(OUTPUTS), domain="ai.alize", window=window, scale=scale
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("ai.alize", 1)]
    functions = [ir.to_proto(body) for body in function_bodies()]
    graph = onnx.helper.make_graph([node], "operator", inputs, outputs)
    made = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    onnx.checker.check_model(made, full_check=True)
    return made


@cache
def session(window: int, scale: float) -> onnxruntime.InferenceSession:
    return onnx_session(model(window, scale).SerializeToString())


def compare(tensors: tuple[torch.Tensor, ...], window: int, scale: float) -> np.ndarray:
    """Holds the body to the operator; returns its output."""
    expected = sliding_window_attention(*tensors, window, scale)
    feeds = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)}
    found = session(window, scale).run(list(OUTPUTS), feeds)
    for name, value, reference in zip(OUTPUTS, found, expected, strict=True):
        np.testing.assert_allclose(value, reference.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
    return np.asarray(found[0])


def random(*shape: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_body_is_the_operator(data: st.DataObject) -> None:
    draw = data.draw
    batch, new, past, size = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 6)), draw(st.integers(1, 5))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    total = past + new
    padding = [draw(st.integers(0, total)) for _ in range(batch)]  # up to all of a row
    mask = (torch.arange(total) >= torch.tensor(padding)[:, None]).long()
    seed = draw(st.integers(0, 99))
    shapes = [(batch, kv_heads * group, new, size)] + [(batch, kv_heads, new, size)] * 2 + [(batch, kv_heads, past, size)] * 2
    tensors = tuple(random(*shape, seed=seed + index) for index, shape in enumerate(shapes))
    output = compare((*tensors, mask), draw(st.integers(0, 13)), draw(st.sampled_from([0.25, 1.0])))
    for row, count in enumerate(padding):
        blind = max(count - past, 0)  # new tokens that are padding themselves see nothing
        assert (output[row, :, :blind] == 0).all()
        assert (output[row, :, blind:] != 0).all()


@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_query_that_sees_no_key_gives_zero(window: int) -> None:
    """Not NaN, and not the average of what is hidden."""
    tensors = tuple(
        random(*shape, seed=index) for index, shape in enumerate([(2, 4, 3, 2), *[(2, 2, 3, 2)] * 2, *[(2, 2, 2, 2)] * 2])
    )
    mask = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]])
    feeds = {name: tensor.numpy() for name, tensor in zip(INPUTS, (*tensors, mask), strict=True)}
    by_definition = ReferenceEvaluator(model(window, 0.5)).run(["output"], feeds)[0]  # its softmax of nothing is NaN
    for output in (compare((*tensors, mask), window, 0.5), by_definition):
        assert (output[0] == 0).all() and (output[1, :, 0] == 0).all()
        assert (output[1, :, 1:] != 0).all()
