"""What tensors held is kept row by row, without the padding; and a graph gets outputs without the onnx package."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from alize.runtimes.taps import Taps, with_outputs


def test_rows_grow_step_by_step() -> None:
    taps = Taps(("a", "b"), batch=2)
    a = np.arange(12).reshape(2, 3, 2)  # [B,S,n]
    taps.add([a, a.reshape(6, 2)[:, :1]], np.array([3, 1]))  # and [B*S,n]
    taps.add([a[:, :1], a[:, 0, :1]], np.array([1, 1]))
    assert taps.row(0, "a").tolist() == [*a[0].tolist(), a[0, 0].tolist()]
    assert taps.row(1, "a").tolist() == [a[1, 0].tolist(), a[1, 0].tolist()]
    assert taps.row(0, "b").ravel().tolist() == [0, 2, 4, 0]


def test_rows_that_run_alone() -> None:
    taps = Taps(("a",), batch=3)
    taps.add([np.array([[1], [2]])], np.array([2]), first=2)
    assert taps.row(2, "a").tolist() == [[1], [2]]


def test_what_it_holds_is_its_own() -> None:
    taps, values = Taps(("a",), batch=1), np.zeros((1, 1), int)
    taps.add([values], np.array([1]))
    values[:] = 7  # an engine's buffer, written to again
    assert taps.row(0, "a").tolist() == [[0]]


@pytest.mark.parametrize("length", [1, 127, 128, 300, 20_000])
def test_outputs_are_added_to_a_graph(length: int, tmp_path: Path) -> None:
    """Names of every length: a protobuf length takes one byte below 128, then more."""
    inner = "x" * length
    nodes = [helper.make_node("Neg", ["in"], [inner]), helper.make_node("Abs", [inner], ["out"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("in", "out")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    more = with_outputs(model.SerializeToString(), [inner])
    assert [value.name for value in onnx.load_from_string(more).graph.output] == ["out", inner]
    assert onnx.load_from_string(more).graph.node == model.graph.node
    import onnxruntime

    session = onnxruntime.InferenceSession(more, providers=["CPUExecutionProvider"])
    found = session.run(None, {"in": np.array([1.0, -2.0], np.float32)})
    assert [array.tolist() for array in found] == [[1.0, 2.0], [-1.0, 2.0]]
