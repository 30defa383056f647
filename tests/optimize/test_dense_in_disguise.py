"""Lowerings that say the right thing and run experts which nobody chose: caught by structure, in the phase where they do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from alize.errors import LoweringFailed
from alize.export.functions import function_bodies
from alize.export.hub import export_hub
from alize.optimize import expert_structure, experts_tiled, lower_onnxruntime, lower_openvino
from alize.optimize.expert_nodes import Writer
from alize.optimize.expert_structure import by_layer, check_phases
from alize.optimize.experts_apart import experts_apart
from tests.export.hubs import TOLERANCE, Tiny, chunks, left_padded, make_tiny, torch_logits
from tests.optimize.lowered import LOWERINGS, logits, lower

LAYERS, E, K = 2, 8, 2
PRODUCT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.\w+_proj")

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", experts=E, top_k=K, layers=LAYERS, window=6)


def pad_rows(hub: ir.Model, phase: str, wanted: Callable[[int, int], bool]) -> None:
    """One row of zeros more for the experts that are wanted, and its answer thrown away again: numbers stay what they were."""
    graph = hub.graph
    place = next(node for node in graph if node.name == "experts.count")
    write = Writer(graph, place)
    one, zero = write.constant([1], "pad.one"), write.constant([0], "pad.zero")
    several = write.add("Min", [write.add("Sub", [place.inputs[0], one], "pad.less"), one], "pad.several")  # type: ignore[list-item]
    count = {"prefill": several, "decode": write.add("Sub", [one, several], "pad.single"), "both": one}[phase]
    for node in [node for node in graph if (match := PRODUCT.fullmatch(str(node.name))) and wanted(*map(int, match.groups()))]:
        rows, product = node.inputs[0], node.outputs[0]
        assert rows is not None
        write = Writer(graph, node)
        whole = write.add("Shape", [rows], f"{node.name}.pad_shape")
        width = write.add("Slice", [whole, one, write.constant([2], f"{node.name}.pad_two")], f"{node.name}.pad_width")
        more = write.add(
            "ConstantOfShape", [write.add("Concat", [count, width], f"{node.name}.pad_size", axis=0)], f"{node.name}.pad"
        )
        node.replace_input_with(0, write.add("Concat", [rows, more], f"{node.name}.padded", axis=0))
        height = write.add("Slice", [whole, zero, one], f"{node.name}.pad_height")
        cut = ir.node("Slice", [product, zero, height, zero], name=f"{node.name}.cut")
        ir.convenience.replace_all_uses_with(product, cut.outputs[0])
        cut.replace_input_with(0, product)
        graph.insert_after(node, cut)
    common.TopologicalSortPass()(hub)


def spoil(patch: Patch, phase: str, wanted: Callable[[int, int], bool]) -> None:
    def padded(model: ir.Model) -> int:
        count = experts_apart(model)
        pad_rows(model, phase, wanted)
        return count

    padded.__name__ = "experts_apart"
    patch.setattr(lower_onnxruntime, "experts_apart", padded)
    patch.setitem(lower_openvino._EXPERTS, "apart", padded)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("target", LOWERINGS)
def test_rows_padded(target: str, phase: str, tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    """Every expert runs. Logits do not tell."""
    spoil(monkeypatch, phase, lambda *_: True)
    lower(tiny, target, tmp_path / "out")
    tokens, (mask, positions) = tiny.tokens(1, 9), left_padded([0], 9)
    found = logits(target, tmp_path / "out", tiny, chunks(tokens, mask, positions, [7, 1, 1]))
    np.testing.assert_allclose(found, torch_logits(tiny.model(), tokens, mask, positions), rtol=0, atol=TOLERANCE)
    where = "prefill" if phase == "both" else phase
    message = (
        rf"^layer 0, {where}: experts (\d, ){{5}}\d ran \(gate_up_proj\), which the router did not choose .*: dense in disguise"
    )
    with pytest.raises(LoweringFailed, match=message):
        LOWERINGS[target].check_structure(tmp_path / "out", tiny.info(), {"experts": "apart"})


@pytest.mark.parametrize("target", LOWERINGS)
def test_one_expert_of_one_layer(target: str, tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    """Of three one at least is not chosen anyway."""
    caught = 0
    for expert in range(K + 1):
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, "decode", lambda layer, e, expert=expert: (layer, e) == (1, expert))
            lower(tiny, target, tmp_path / str(expert))
        try:
            LOWERINGS[target].check_structure(tmp_path / str(expert), tiny.info(), {})
        except LoweringFailed as error:
            assert str(error).startswith(f"layer 1, decode: expert {expert} ran ")
            caught += 1
    assert caught


def inlined(hub: ir.Model) -> int:
    """The function bodies themselves, which are dense."""
    body = next(body for body in function_bodies() if body.name == "SparseMoE")
    hub.functions.clear()
    hub.functions[body.identifier()] = body
    common.InlinePass()(hub)
    return 1


@pytest.mark.parametrize("target", LOWERINGS)
def test_the_body_itself(target: str, tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(lower_onnxruntime, "experts_apart", inlined)
    monkeypatch.setitem(lower_openvino._EXPERTS, "apart", inlined)
    monkeypatch.setattr(lower_openvino, "lower_index_first", lambda model: 0)
    lower(tiny, target, tmp_path / "out")
    with pytest.raises(LoweringFailed, match=r"has no \w+ layers\.0\.experts: which experts its router chooses cannot be seen"):
        LOWERINGS[target].check_structure(tmp_path / "out", tiny.info(), {})


# the tiled form of OpenVINO


def copies_for_tile(patch: Patch) -> None:
    from openvino import opset13 as ops

    patch.setattr(ops, "tile", lambda rows, _: ops.concat([rows] * E, 0))


def swish_with_beta(patch: Patch) -> None:
    from openvino import opset13 as ops

    multiply = ops.multiply

    def product(left: Any, right: Any) -> Any:
        is_silu = getattr(right, "get_type_name", lambda: "")() == "Sigmoid"
        return ops.swish(left, ops.constant(np.float32(1))) if is_silu else multiply(left, right)

    patch.setattr(ops, "multiply", product)


def shares_without_reshape(patch: Patch) -> None:
    from openvino import opset13 as ops

    def shares(chosen: Any, experts: int, shape: Any) -> Any:
        whole = usual(chosen, experts, shape)
        by_expert = whole.input_value(0).get_node()
        rows = by_expert.input_value(0)
        return ops.reshape(ops.unsqueeze(rows, ops.constant(np.int64(2))), ops.shape_of(whole), special_zero=False)

    usual = experts_tiled._shares
    patch.setattr(experts_tiled, "_shares", shares)


@pytest.mark.parametrize("break_pattern", [copies_for_tile, swish_with_beta, shares_without_reshape])
def test_unfused_tiles(break_pattern: Callable[[Patch], None], tiny: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    """Another spelling of the same: right logits, and all experts multiplied with all tokens."""
    break_pattern(monkeypatch)
    lower(tiny, "openvino", tmp_path / "out", experts="tiled")
    tokens, (mask, positions) = tiny.tokens(1, 9), left_padded([0], 9)
    found = logits("openvino", tmp_path / "out", tiny, chunks(tokens, mask, positions, [7, 1, 1]))
    np.testing.assert_allclose(found, torch_logits(tiny.model(), tokens, mask, positions), rtol=0, atol=TOLERANCE)
    message = r"^layer 0: the experts were not fused to GatherMatmul \(gate_proj FullyConnected, .*\): dense in disguise"
    with pytest.raises(LoweringFailed, match=message):
        lower_openvino.check_structure(tmp_path / "out", tiny.info(), {"experts": "tiled"})


def test_one_form_is_not_the_other(tiny: Tiny, tmp_path: Path) -> None:
    """The form that the manifest names is the one that is asserted."""
    for form in ("apart", "tiled"):
        lower(tiny, "openvino", tmp_path / form, experts=form)
    with pytest.raises(LoweringFailed, match=r"layer 0: experts 0, .* no matrix multiplication of its own for gate_up_proj"):
        lower_openvino.check_structure(tmp_path / "tiled", tiny.info(), {"experts": "apart"})
    with pytest.raises(LoweringFailed, match=r"layer 0: the experts were not fused to GatherMatmul"):
        lower_openvino.check_structure(tmp_path / "apart", tiny.info(), {"experts": "tiled"})


# the judgement by itself


def phase(ran: set[int], chosen: set[int]) -> expert_structure.Phase:
    parts = {"gate_up_proj": ran, "down_proj": ran}
    return expert_structure.Phase("decode", 1, dict.fromkeys(range(LAYERS), chosen), dict.fromkeys(range(LAYERS), parts))


def test_judgement(tiny: Tiny) -> None:
    info = tiny.info()
    everything = by_layer(
        (f"layers.{i}.experts.{e}.{part}" for i in range(LAYERS) for e in range(E) for part in ("gate_up_proj", "down_proj")),
        LAYERS,
    )
    assert check_phases([phase({1, 5}, {1, 5})], everything, info)["decode"]["experts_executed"] == 2 * LAYERS
    with pytest.raises(LoweringFailed, match=r"^layer 0, decode: expert 2 ran \(gate_up_proj\), .* \(it chose experts 1, 5\)"):
        check_phases([phase({1, 2, 5}, {1, 5})], everything, info)
    with pytest.raises(LoweringFailed, match=r"^layer 0, decode: expert 5 did not run \(gate_up_proj\), which the router chose"):
        check_phases([phase({1}, {1, 5})], everything, info)
    everything[1]["gate_up_proj"].remove(3)
    with pytest.raises(LoweringFailed, match=r"^layer 1: expert 3 has no matrix multiplication of its own for gate_up_proj"):
        check_phases([phase({1, 5}, {1, 5})], everything, info)


def test_hub_is_left_to_its_body(tiny: Tiny) -> None:
    """What `inlined` stands for: the hub itself reaches every expert."""
    hub = export_hub(tiny.checkpoint)
    inlined(hub)
    assert not [node for node in hub.graph if PRODUCT.fullmatch(str(node.name))]
