"""Integers that an engine unpacks instead of multiplying with them are named, by layer and projection."""

from pathlib import Path

import onnx_ir as ir
import pytest

from alize.errors import LoweringFailed
from alize.optimize import lower_onnxruntime, lower_openvino
from tests.export.hubs import Tiny, make_tiny
from tests.optimize.lowered import LOWERINGS, lower
from tests.optimize.test_structure import Patch, W, drop_pass


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Wide enough for groups: inputs of 64 and of 96."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", window=W, layers=2, hidden_size=64, intermediate_size=96)


def without_transposing(patch: Patch) -> None:
    drop_pass(patch, lower_onnxruntime, ("transpose_weights",))


def with_a_detour(patch: Patch) -> None:
    """Layer 1's matrix goes through operators that no kernel takes integers through."""
    usual = lower_openvino.passes

    def apply(model: ir.Model) -> int:
        value = next(node for node in model.graph if node.name == f"{PROJECTION}.dequantised").outputs[0]
        readers = list(value.uses())
        nodes = [ir.node("Exp", [value])]
        nodes.append(ir.node("Log", [nodes[0].outputs[0]]))
        for use in readers:
            use.node.replace_input_with(use.idx, nodes[-1].outputs[0])
        model.graph.insert_before(readers[0].node, nodes)
        return 1

    patch.setattr(lower_openvino, "passes", lambda *choices: (*usual(*choices), apply))


PROJECTION = "model.layers.1.self_attn.o_proj.weight"
UNPACKED = {
    "openvino": (with_a_detour, "layer 1: self_attn.o_proj did not run as FullyConnected with integers but as "),
    "onnxruntime": (without_transposing, "layer 0: mlp.down_proj did not run as MatMulNBits but as "),
}


@pytest.mark.parametrize("target", LOWERINGS)
@pytest.mark.parametrize(
    ("weights", "forms"),
    [
        ("int4-g128", {"int4 channel": 12, "int4 g32": 2, "int8 channel": 2}),
        ("int4-g32-asym", {"int4 g32 asymmetric": 14, "int8 channel": 2}),
        ("int8-g64", {"int8 channel": 14, "int8 g32": 2}),
        ("int8-channel-asym", {"int8 channel": 2, "int8 channel asymmetric": 14}),
    ],
)
def test_products_with_integers(target: str, weights: str, forms: dict[str, int], wide: Tiny, tmp_path: Path) -> None:
    lower(wide, target, tmp_path / "out", weights=weights)
    found = LOWERINGS[target].check_structure(tmp_path / "out", wide.info(), {}, weights=weights)
    assert (found["integer_products"], found["integers"]) == (15, forms)


@pytest.mark.parametrize("target", LOWERINGS)
def test_integers_that_are_unpacked_are_named(target: str, wide: Tiny, tmp_path: Path, monkeypatch: Patch) -> None:
    spoil, message = UNPACKED[target]
    spoil(monkeypatch)
    lower(wide, target, tmp_path / "out", weights="int4-g32")
    with pytest.raises(LoweringFailed, match=f"^{message}"):
        LOWERINGS[target].check_structure(tmp_path / "out", wide.info(), {}, weights="int4-g32")


@pytest.mark.parametrize("target", LOWERINGS)
def test_floats_in_the_place_of_integers_are_named(target: str, wide: Tiny, tmp_path: Path) -> None:
    lower(wide, target, tmp_path / "out")
    with pytest.raises(LoweringFailed, match=r"^layer 0: no matrix is stored as integers"):
        LOWERINGS[target].check_structure(tmp_path / "out", wide.info(), {}, weights="int8-channel")
