"""What `check_structure` asserts on the compiled graphs fails by name when a pass breaks it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from alize.errors import LoweringFailed
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
from alize.optimize import lower_onnxruntime, lower_openvino, openvino_attention, openvino_stateful
from alize.optimize.openvino_structure import (
    compile_ir,
    execution_kinds,
    execution_layers,
    mask_windows,
    paged_form,
    paged_windows,
)
from alize.optimize.passes import Pass, attentions, drop_functions
from alize.optimize.rotary_before_split import rotary_before_split
from tests.export.hubs import Tiny, make_tiny
from tests.optimize.lowered import LOWERINGS, lower
from tests.tiny import edit_tensor

W, H, K, D, M = 6, 4, 2, 8, 32
WINDOWS = (W, W)

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", window=W, layers=2)


def add_pass(patch: Patch, lowering: Any, step: Pass) -> None:
    """Runs another pass before those of the lowering."""
    usual = lowering.passes
    patch.setattr(lowering, "passes", lambda *options: (step, *usual(*options)))


def drop_pass(patch: Patch, lowering: Any, dropped: Sequence[str]) -> None:
    usual = lowering.passes
    patch.setattr(lowering, "passes", lambda *options: tuple(step for step in usual(*options) if step.__name__ not in dropped))


# how OpenVINO's graph is spoilt


def without_beam_idx(patch: Patch) -> None:
    """The state is concatenated to as it is read, without the Gather."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    def make_stateful(model: Any) -> int:
        names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
        pasts = {name: name.replace("past_key_values", "present") for name in names if name.startswith("past")}
        apply_make_stateful_transformation(model, pasts)
        openvino_stateful._start_empty(model)
        return len(pasts) // 2

    patch.setattr(lower_openvino, "make_stateful", make_stateful)


def grouped_by_tile(patch: Patch) -> None:
    from openvino import opset13 as ops

    def repeat_heads(present: Any, query: Any, current: Any) -> Any:
        repeats = ops.constant(np.array([1, 1, H // K, 1, 1], np.int64))
        tiled = ops.tile(ops.unsqueeze(present, ops.constant(np.int64(2))), repeats)
        return ops.reshape(tiled, ops.constant(np.array([0, H, -1, D], np.int64)), special_zero=True)

    patch.setattr(openvino_attention, "_repeat_heads", repeat_heads)


def without_state(patch: Patch) -> None:
    patch.setattr(lower_openvino, "make_stateful", lambda model: 0)


def without_initial_state(patch: Patch) -> None:
    patch.setattr(openvino_stateful, "_start_empty", lambda model: model.validate_nodes_and_infer_types())


def rotary_of_flat_heads(patch: Patch) -> None:
    """The engine fuses the rotation of [B,H,S,D] only."""
    add_pass(patch, lower_openvino, rotary_before_split)


def norm_by_sums(patch: Patch) -> None:
    """Layer 1's second norm, written in a way that computes the same and is not known."""

    def apply(model: ir.Model) -> int:
        norm = next(node for node in model.graph if node.name == "layers.1.post_attention_layernorm")
        x, weight = norm.inputs
        axis, small, count = (ir.node("Constant", [], {"value": ir.tensor(value)}) for value in ([-1], 1e-5, float(M)))
        added = [axis, small, count]

        def node(op_type: str, *inputs: ir.Value | None) -> ir.Value:
            added.append(ir.node(op_type, inputs))
            return added[-1].outputs[0]

        squares = node("ReduceSumSquare", x, axis.outputs[0])
        mean = node("Add", node("Div", squares, count.outputs[0]), small.outputs[0])
        node("Mul", node("Mul", x, node("Reciprocal", node("Sqrt", mean))), weight)
        added[-1].name = norm.name
        model.graph.insert_before(norm, added)
        ir.convenience.replace_all_uses_with(norm.outputs[0], added[-1].outputs[0])
        model.graph.remove(norm)
        return 1

    add_pass(patch, lower_openvino, apply)


def mask_of(patch: Patch, **operators: Callable[..., Any]) -> None:
    """The mask, with some of the operators that it is made of replaced."""
    from openvino import opset13 as ops

    usual = openvino_attention._mask

    def mask(query: Any, padding: Any, window: int) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            for name, replacement in operators.items():
                inside.setattr(ops, name, replacement)
            return usual(query, padding, window)

    patch.setattr(openvino_attention, "_mask", mask)


def logical_mask(patch: Patch) -> None:
    from openvino import opset13 as ops

    mask_of(patch, bitwise_and=ops.logical_and)


def mask_without_broadcast(patch: Patch) -> None:
    mask_of(patch, broadcast=lambda value, *_, **__: value)


def mask_of_distance(patch: Patch) -> None:
    """query - key < W, as one would write it."""
    from openvino import opset13 as ops

    def near(keys: Any, bound: Any) -> Any:
        queries = bound.input_value(0)
        return ops.less(ops.subtract(queries, keys), ops.constant(np.int64(W)))

    mask_of(patch, greater=near)


def other_window(change: int) -> Callable[[Patch], None]:
    def spoil(patch: Patch) -> None:
        usual = openvino_attention._mask
        patch.setattr(openvino_attention, "_mask", lambda query, padding, window: usual(query, padding, window + change))

    return spoil


BROKEN_OPENVINO: dict[str, tuple[Callable[[Patch], None], str]] = {
    # what is wrong -> how the lowering is spoilt, what the check says
    "no beam_idx": (without_beam_idx, "layer 0: no fused stateful attention in the compiled graph"),
    "no state": (without_state, "layer 0: no fused stateful attention in the compiled graph"),
    "tile": (grouped_by_tile, "layer 0: no fused stateful attention in the compiled graph"),
    "no initial state": (without_initial_state, r"openvino 2\S+ cannot compile the model: .*ReadValue"),
    "rotary": (rotary_of_flat_heads, "layer 0: no fused RoPE of the query and no fused RoPE of the key in the compiled graph"),
    "norm": (norm_by_sums, "layer 1: no fused RMS before the MLP in the compiled graph"),
    "logical and": (logical_mask, r"paged attention would run with the windows \[0, 0\], the model's are \[6, 6\]"),
    "no broadcast": (mask_without_broadcast, r"paged attention would run with the windows \[0, 0\], the model's are \[6, 6\]"),
    "distance": (mask_of_distance, "layer 0: the mask's window is 0, the model's is 6"),
    "W-1": (other_window(-1), "layer 0: the mask's window is 5, the model's is 6"),
    "W+1": (other_window(1), "layer 0: the mask's window is 7, the model's is 6"),
    "no window": (other_window(-W), "layer 0: the mask's window is 0, the model's is 6"),
}


@pytest.mark.parametrize("name", BROKEN_OPENVINO)
def test_openvino(name: str, tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    spoil, message = BROKEN_OPENVINO[name]
    spoil(monkeypatch)
    lower(tiny, "openvino", tmp_path / "out")
    with pytest.raises(LoweringFailed, match=f"^{message}") as raised:
        lower_openvino.check_structure(tmp_path / "out", tiny.info(), {})
    assert "\n" not in str(raised.value)


def test_each_question_by_itself(tiny: Tiny, tmp_path: Path) -> None:
    lower(tiny, "openvino", tmp_path / "out")
    path = tmp_path / "out" / "openvino_model.xml"
    assert mask_windows(path) == {0: W, 1: W}
    assert paged_windows(paged_form(path)) == [W, W]
    layers = execution_layers(execution_kinds(compile_ir(path)))
    assert set(layers) == {
        "stateful attention",
        "RoPE of the query",
        "RoPE of the key",
        "RMS before attention",
        "RMS before the MLP",
    }
    assert set(map(frozenset, layers.values())) == {frozenset({0, 1})}


@pytest.mark.parametrize(
    ("ones", "counts"),
    [("layernorm", (0, 4)), ("layers.1.post_attention_layernorm", (3, 1)), ("layers.0.input_layernorm", (3, 1))],
)
def test_norms_of_ones_need_not_be_fused(ones: str, counts: tuple[int, int], tmp_path: Path, monkeypatch: Patch) -> None:
    """The engine leaves the multiplication out, and then knows no norm; any other that is not fused is still named."""
    tiny = make_tiny(tmp_path / "model", window=W, layers=2, dtype="bfloat16")
    for name in [name for name in Checkpoint.open(tmp_path / "model").tensors if f"{ones}." in name]:
        edit_tensor(tmp_path / "model", name, torch.ones(M, dtype=torch.bfloat16))
    lower(tiny, "openvino", tmp_path / "out")
    structure = lower_openvino.check_structure(tmp_path / "out", tiny.info(), {})
    assert (structure["norm_nodes"], structure["norms_of_ones"]) == counts
    if ones == "layers.0.input_layernorm":
        norm_by_sums(monkeypatch)
        lower(tiny, "openvino", tmp_path / "again")
        with pytest.raises(LoweringFailed, match=r"^layer 1: no fused RMS before the MLP in the compiled graph"):
            lower_openvino.check_structure(tmp_path / "again", tiny.info(), {})


def test_an_attention_that_the_paged_pass_does_not_know(tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    """It does not leave such a node alone: it leaves a model that cannot be used."""
    grouped_by_tile(monkeypatch)
    lower(tiny, "openvino", tmp_path / "out")
    with pytest.raises(LoweringFailed, match="paged-attention pass does not take the model"):
        paged_form(tmp_path / "out" / "openvino_model.xml")


def test_layers_with_windows_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    """One mask for each window; each layer is held to its own."""
    hub = export_hub(tiny.checkpoint)
    for node, window in zip(attentions(hub), (4, 0), strict=True):
        node.attributes["window"] = ir.AttrInt64("window", window)
    lower_openvino.lower(hub, tmp_path, weights="fp32")
    assert lower_openvino.check_structure(tmp_path, tiny.info(windows=(4, 0)), {})["paged_attention_windows"] == [0, 4]
    with pytest.raises(LoweringFailed, match=r"^layer 0: the mask's window is 4, the model's is 0"):
        lower_openvino.check_structure(tmp_path, tiny.info(windows=(0, 4)), {})


# ONNX Runtime


def without_fusion(patch: Patch) -> None:
    drop_pass(patch, lower_onnxruntime, ("group_query_attention", "drop_functions"))


def window_of_layer_1(change: int) -> Callable[[Patch], None]:
    def apply(model: ir.Model) -> int:
        node = attentions(model)[1]
        node.attributes["window"] = ir.AttrInt64("window", W + change)
        return 1

    return lambda patch: add_pass(patch, lower_onnxruntime, apply)


BROKEN_ONNXRUNTIME: dict[str, tuple[Callable[[Patch], None], str]] = {
    "not fused": (without_fusion, "layer 0: attention did not run as GroupQueryAttention but as nothing of that name"),
    "W-1": (window_of_layer_1(-1), "layer 1: GroupQueryAttention has local_window_size 5, the model's is 6"),
    "W+1": (window_of_layer_1(1), "layer 1: GroupQueryAttention has local_window_size 7, the model's is 6"),
    "no window": (window_of_layer_1(-W), "layer 1: GroupQueryAttention has local_window_size -1, the model's is 6"),
}


@pytest.mark.parametrize("name", BROKEN_ONNXRUNTIME)
def test_onnxruntime(name: str, tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    spoil, message = BROKEN_ONNXRUNTIME[name]
    spoil(monkeypatch)
    lower(tiny, "onnxruntime", tmp_path / "out")
    with pytest.raises(LoweringFailed, match=f"^{message}"):
        lower_onnxruntime.check_structure(tmp_path / "out", tiny.info(), {})


@pytest.mark.parametrize("target", LOWERINGS)
def test_a_missing_layer_is_named(target: str, tiny: Tiny, tmp_path: Path) -> None:
    lower(tiny, target, tmp_path / "out")
    with pytest.raises(LoweringFailed, match=r"^layer 2: "):
        LOWERINGS[target].check_structure(tmp_path / "out", tiny.info(windows=(*WINDOWS, W)), {})


# the passes on the IR refuse by themselves


def test_make_stateful_refuses_a_model_without_a_past(tiny: Tiny, tmp_path: Path) -> None:
    import openvino

    lower(tiny, "openvino", tmp_path / "out")
    model = openvino.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    with pytest.raises(LoweringFailed, match="make_stateful: 0 past inputs, expected two for each layer"):
        openvino_stateful.make_stateful(model)


def test_conversion_refuses_heads_that_are_not_static(tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    def free_heads(model: ir.Model) -> int:
        for node in attentions(model):
            split = node.inputs[2].producer().inputs[0].producer()  # type: ignore[union-attr]
            sizes = ir.node("Constant", [], {"value": ir.tensor([0, 0, -1, D])})
            model.graph.insert_before(split, sizes)
            shape = ir.node("Shape", [model.graph.inputs[0]], {"start": 1, "end": 2})
            model.graph.insert_before(split, shape)
            zeros = ir.node("Sub", [shape.outputs[0], shape.outputs[0]])
            free = ir.node("Add", [sizes.outputs[0], zeros.outputs[0]])
            model.graph.insert_before(split, [zeros, free])
            split.replace_input_with(1, free.outputs[0])
        return 1

    add_pass(monkeypatch, lower_openvino, free_heads)
    message = r"openvino \S+ cannot convert the graph: .*openvino_attention: axis 1 of .* is dynamic; heads must be static"
    with pytest.raises(LoweringFailed, match=message):
        lower(tiny, "openvino", tmp_path / "out")


def test_dropping_bodies_of_nodes_that_stay_is_left_to_the_engine(tiny: Tiny) -> None:
    """OpenVINO's conversion takes the nodes themselves, so the bodies go and the domain stays."""
    hub = export_hub(tiny.checkpoint)
    drop_functions(hub)
    assert len(attentions(hub)) == 2 and "ai.alize" in hub.opset_imports
