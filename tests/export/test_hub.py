"""The hub is a complete ONNX model: what it says to whoever opens it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alize.errors import ExportFailed
from alize.export import hub
from alize.export.functions import function_bodies
from alize.export.hub import export_graph, export_hub, save
from alize.export.weights import StreamedWeight
from alize.models.rotary import inverse_frequencies
from tests.export.hubs import TOLERANCE, Tiny, chunks, left_padded, make_tiny, nodes, onnx_logits, onnx_session, torch_logits


@pytest.fixture(scope="module")
def proto(tiny: Tiny) -> onnx.ModelProto:
    return onnx.load(tiny.saved, load_external_data=False)


def test_opset_and_functions(tiny: Tiny, proto: onnx.ModelProto) -> None:
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 23, "ai.alize": 1}
    assert [(body.domain, body.name) for body in proto.functions] == [("ai.alize", "SlidingWindowAttention")]
    body = proto.functions[0]
    assert {entry.domain: entry.version for entry in body.opset_import} == {"": 23}
    assert {node.domain for node in body.node} == {""}  # standard operators only
    assert sorted(body.attribute) == ["scale", "window"]
    assert list(body.input) == ["query", "key", "value", "past_key", "past_value", "attention_mask"]
    assert list(body.output) == ["output", "present_key", "present_value"]
    assert {node.domain for node in proto.graph.node} == {"", "ai.alize"}
    onnx.checker.check_model(tiny.saved, full_check=True)


def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    dims = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: [dim.dim_param or dim.dim_value for dim in sizes] for name, sizes in dims.items()}


def test_interface(proto: onnx.ModelProto) -> None:
    past = ["batch_size", 2, "past_sequence_length", 8]
    present = ["batch_size", 2, "total_sequence_length", 8]
    parts = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    inputs, outputs = shapes(proto.graph.input), shapes(proto.graph.output)
    assert inputs == {
        "input_ids": ["batch_size", "sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        **{f"past_key_values.{part}": past for part in parts},
        "num_logits_to_keep": [1],
    }
    assert outputs == {
        "logits": ["batch_size", "num_logits", 320],
        **{f"present.{part}": present for part in parts},
    }
    assert list(inputs) == ["input_ids", "position_ids", "attention_mask", *list(inputs)[3:-1], "num_logits_to_keep"]
    integers = {"input_ids", "position_ids", "attention_mask", "num_logits_to_keep"}
    for value in [*proto.graph.input, *proto.graph.output]:
        kind = onnx.TensorProto.INT64 if value.name in integers else onnx.TensorProto.FLOAT
        assert value.type.tensor_type.elem_type == kind, value.name


def test_dimensions_bear_the_names_of_the_interface(proto: onnx.ModelProto) -> None:
    free = {size for sizes in shapes(proto.graph.value_info).values() for size in sizes if isinstance(size, str)}
    assert free == {"batch_size", "sequence_length"}


def test_a_client_that_knows_nothing_of_it_never_sees_num_logits_to_keep(tiny: Tiny) -> None:
    session = onnx_session(tiny.saved)
    assert "num_logits_to_keep" not in [value.name for value in session.get_inputs()]
    assert [value.name for value in session.get_overridable_initializers()] == ["num_logits_to_keep"]


@pytest.mark.parametrize(("keep", "kept"), [(0, 7), (1, 1), (3, 3), (7, 7), (9, 7)])
def test_num_logits_to_keep_is_the_last_so_many(tiny: Tiny, keep: int, kept: int) -> None:
    tokens, (mask, positions) = tiny.tokens(2, 7), left_padded([0, 2], 7)
    (step,) = chunks(tokens, mask, positions, [7])
    session, past = onnx_session(tiny.saved), tiny.no_past(2)
    (logits,) = session.run(["logits"], {**step, **past, "num_logits_to_keep": np.array([keep])})
    everything = onnx_logits(session, [step], past)
    assert logits.shape == (2, kept, 320)
    np.testing.assert_allclose(logits, everything[:, 7 - kept :], rtol=0, atol=1e-5)


def test_layers_have_names(tiny: Tiny) -> None:
    model = export_hub(tiny.checkpoint)
    names = {node.name: node.op_type for node in model.graph}
    values = {value.name for node in model.graph for value in node.outputs}
    for layer in (0, 1):
        assert names[f"layers.{layer}.self_attn"] == "SlidingWindowAttention"
        assert names[f"layers.{layer}.self_attn.rotary_query"] == "RotaryEmbedding"
        assert names[f"layers.{layer}.self_attn.rotary_key"] == "RotaryEmbedding"
        assert names[f"layers.{layer}.input_layernorm"] == "RMSNormalization"
        assert names[f"layers.{layer}.post_attention_layernorm"] == "RMSNormalization"
        assert {f"layers.{layer}.{part}" for part in ("heads", "attention", "mlp")} <= values
    assert names["norm"] == "RMSNormalization"
    assert len({node.name for node in model.graph}) == model.graph.num_nodes()


def test_named_values_are_what_their_names_say(tiny: Tiny) -> None:
    """The residual stream after each half of each layer, and the merged heads, against the definition run by hand."""
    import torch

    model, tokens = tiny.model(), tiny.tokens(1, 9)
    mask, positions = left_padded([0], 9)
    empty = torch.empty(1, 2, 0, 8)
    expected: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        hidden, angles = model.embed(torch.from_numpy(tokens)), model.angles(torch.from_numpy(positions))
        for index, layer in enumerate(model.layers):
            hook = layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, inputs, index=index: expected.update({f"layers.{index}.heads": inputs[0]})
            )
            hidden, _ = layer.attend(hidden, angles, torch.from_numpy(mask), (empty, empty))
            hook.remove()
            expected[f"layers.{index}.attention"] = hidden
            expected[f"layers.{index}.mlp"] = hidden = layer.feed(hidden)
    proto = onnx.load(tiny.saved)
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in expected)
    (step,) = chunks(tokens, mask, positions, [9])
    found = onnx_session(proto.SerializeToString()).run(list(expected), {**step, **tiny.no_past(1)})
    for value, (name, tensor) in zip(found, expected.items(), strict=True):
        np.testing.assert_allclose(value, tensor.numpy(), rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(("head_size", "theta"), [(8, 1e4), (6, 1e6), (128, 1e5)])
def test_inverse_frequencies_are_the_definitions_own_numbers(head_size: int, theta: float) -> None:
    """Bit for bit: an engine that folded or recomputed them would turn far positions by another angle."""
    config = {
        "model_type": "mistral", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head_size, "rope_theta": theta,
    }  # fmt: skip
    tensor = export_graph(config).graph.initializers["inverse_frequencies"].const_value
    assert tensor is not None and tensor.dtype == ir.DataType.FLOAT
    expected = np.array(inverse_frequencies(head_size, theta), np.float32)
    assert tensor.numpy().tobytes() == expected.tobytes()


def test_window_and_scale_are_attributes(tmp_path: Path) -> None:
    for window in (0, 5):
        tiny = make_tiny(tmp_path / f"w{window}", window=window, layers=1, head_size=6)
        (node,) = nodes(export_graph(tiny.checkpoint.config), "SlidingWindowAttention")
        assert node.attributes["window"].as_int() == window
        assert np.float32(node.attributes["scale"].as_float()) == np.float32(6**-0.5)


def test_each_model_owns_its_function_bodies() -> None:
    first, second = function_bodies()[0], function_bodies()[0]
    assert first is not second


def digest(folder: Path) -> str:
    parts = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.onnx", "model.onnx.data")]
    return " ".join(parts)


EXPORT_ELSEWHERE = """
import sys
from pathlib import Path
from alize.export.hub import export_hub, save
from alize.models.checkpoint import Checkpoint
save(export_hub(Checkpoint.open(Path(sys.argv[1]))), Path(sys.argv[2]) / "model.onnx")
"""


def test_the_same_checkpoint_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    """In this process and in another one, where sets and dicts of strings have another order."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    save(export_hub(tiny.checkpoint), here / "model.onnx")
    assert digest(here) == digest(tiny.saved.parent)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", EXPORT_ELSEWHERE, str(tiny.checkpoint.folder), str(there)]
    subprocess.run(command, check=True, env=environment)
    assert digest(there) == digest(here)


def test_an_invalid_model_is_not_called_saved(tiny: Tiny, tmp_path: Path) -> None:
    model = export_hub(tiny.checkpoint)
    model.graph.outputs[0].dtype = ir.DataType.INT64
    with pytest.raises(ExportFailed, match=r"model.onnx is not valid ONNX: "):
        save(model, tmp_path / "model.onnx")


def test_saving_leaves_the_weights_in_the_shards(tiny: Tiny, tmp_path: Path) -> None:
    """Another lowering may start from the same hub."""
    model = export_hub(tiny.checkpoint)
    for name in ("first.onnx", "second.onnx"):
        save(model, tmp_path / name)
    streamed = [value for value in model.graph.initializers.values() if isinstance(value.const_value, StreamedWeight)]
    assert len(streamed) == 2 * 9 + 3
    assert (tmp_path / "first.onnx.data").read_bytes() == (tmp_path / "second.onnx.data").read_bytes()


def test_passes_of_the_export_are_a_visible_list() -> None:
    assert [step.__name__ for step in hub.PASSES] == ["name_interface", "name_layers", "slice_before_head"]


def test_logits_are_those_of_torch(tiny: Tiny) -> None:
    tokens, (mask, positions) = tiny.tokens(1, 15), left_padded([0], 15)
    steps = chunks(tokens, mask, positions, [15])
    found = onnx_logits(onnx_session(tiny.saved), steps, tiny.no_past(1))
    np.testing.assert_allclose(found, torch_logits(tiny.model(), tokens, mask, positions), rtol=0, atol=TOLERANCE)
