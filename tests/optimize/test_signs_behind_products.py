"""Scales of int8 without signs, and the signs behind what is computed with the rows: the same numbers to the last bit."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alize.errors import LoweringFailed
from alize.optimize.signs_behind_products import signs_behind_products

ROWS, COLUMNS, EXPERTS = 6, 8, 3


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def graph(*extra: onnx.NodeProto, outputs: str = "logits experts") -> ir.Model:
    """A table that is looked up in and multiplied with, as a tied one is, and some experts of a stack."""
    chance = np.random.default_rng(0)
    integers = {name: chance.integers(-128, 128, shape, np.int8) for name, shape in shapes().items()}
    scales = {f"{name}.scales": chance.normal(size=shape[:-1]).astype(np.float32) for name, shape in shapes().items()}
    scales["stack.scales"] = scales["stack.scales"][..., None]
    nodes = [
        node("DequantizeLinear", "table table.scales", "rows", axis=0),
        node("Gather", "rows ids", "found", axis=0),
        node("DequantizeLinear", "table table.scales", "head", axis=0),
        node("Transpose", "head", "turned", perm=[1, 0]),
        node("MatMul", "found turned", "logits"),
        node("DequantizeLinear", "stack stack.scales", "every", axis=2, block_size=COLUMNS),
        node("Transpose", "every", "every_turned", perm=[0, 2, 1]),
        node("Gather", "every_turned chosen", "some", axis=0),
        node("MatMul", "found some", "experts"),
        *extra,
    ]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("ids", "chosen")]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    stored = [numpy_helper.from_array(array, name) for name, array in (integers | scales).items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ids, made, stored), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def shapes() -> dict[str, tuple[int, ...]]:
    return {"table": (ROWS, COLUMNS), "stack": (EXPERTS, ROWS, COLUMNS)}


def results(model: ir.Model, path: Path) -> list[np.ndarray]:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    feeds = {"ids": np.array([5, 0, 3, 1]), "chosen": np.array([2, 0])}
    found: list[np.ndarray] = onnxruntime.InferenceSession(path).run(["logits", "experts"], feeds)
    return found


def test_the_numbers_stay_and_no_scale_is_negative(tmp_path: Path) -> None:
    expected = results(graph(), tmp_path / "before.onnx")
    model = graph()
    signs_behind_products(model)
    found = results(model, tmp_path / "after.onnx")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in shapes():
        values = {part: model.graph.initializers[f"{name}.{part}"].const_value for part in ("scales", "signs")}
        scales, signs = (np.asarray(value.numpy()) for value in values.values() if value is not None)
        assert (scales >= 0).all()
        assert set(np.unique(signs)) == {-1, 1}


def test_what_else_reads_a_matrix_is_named() -> None:
    with pytest.raises(LoweringFailed, match=r"signs_behind_products: largest \(ReduceMax\) reads head: its rows are lost"):
        signs_behind_products(graph(node("ReduceMax", "head", "largest"), outputs="logits largest"))
