"""Artifacts for ONNX Runtime on an NVIDIA GPU, built and run where there is none: the graph is proven for real, in float32; the
CUDA provider is played by the CPU's, in float16. ci/gpu runs them on a GPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from alize.building import build
from alize.engine_options import EngineOptions
from alize.errors import ArtifactError, DeviceUnavailable, LoweringFailed, NotValidated, UsageError, ValidationFailed
from alize.optimize import matmul_nbits
from alize.runtimes import onnxruntime_cuda, onnxruntime_runner
from alize.runtimes.model import load
from tests.builds.conftest import Built, BuiltOnce
from tests.builds.played_cuda import play_cuda

WEIGHTS: dict[str, dict[str, str]] = {
    "windowed": {"weights": "fp16"},
    "mixed": {"weights": "fp16"},
    "mixtral": {"weights": "int4", "group_size": "32"},
    "tied": {"weights": "int8"},
}

pytestmark = pytest.mark.usefixtures("own_state")


def made(built: BuiltOnce, model: str = "windowed") -> Built:
    return built("onnxruntime", model, device="cuda", quantisation_budget=9.0, **WEIGHTS[model])


@pytest.mark.parametrize("model", WEIGHTS)
def test_the_lowered_graph_is_proven_and_no_more_is_said(model: str, built: BuiltOnce) -> None:
    one = made(built, model)
    validation, target = one.manifest.validation, one.manifest.target
    assert (validation.verdict, validation.level) == ("pass", "graph-validated")
    assert validation.left_out == ("runtime loss on cuda: the golden prompts are replayed at its first load",)
    assert (target.backend, target.device) == ("onnxruntime", "cuda")
    assert target.weights.startswith(WEIGHTS[model]["weights"])
    assert "--device cuda" in one.manifest.rebuild
    config = json.loads((one.folder / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [{"cuda": {}}]
    if model == "mixtral":
        assert target.structure["experts"]["decode"] == {"experts_executed": 6, "experts_reachable": 12, "tokens": 1}
        assert target.structure["integers"] == {"int4 g32": 36, "int8 channel": 2}


@pytest.mark.parametrize("model", WEIGHTS)
def test_the_graph_is_what_the_provider_takes(model: str, built: BuiltOnce) -> None:
    """Half caches, half attention without a bias, and integers in MatMulNBits alone: see lower_onnxruntime_cuda.py."""
    graph = onnx.load(made(built, model).folder / "model.onnx", load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    caches = {kind for name, kind in kinds.items() if name.startswith(("past_key_values.", "present."))}
    assert caches == {onnx.TensorProto.FLOAT16}
    assert kinds["logits"] == onnx.TensorProto.FLOAT
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert attentions and all(len(node.input) == 7 for node in attentions)
    assert not [node for node in graph.node if node.op_type == "DequantizeLinear"]


def test_a_zero_elsewhere_is_found(built: BuiltOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers that are read back as they were written, and multiplied with as others."""
    monkeypatch.setattr(matmul_nbits, "_turned", lambda bits: np.uint8(0))
    with pytest.raises(ValidationFailed, match="does not say what PyTorch says"):
        build(str(made(built, "tied").checkpoint), output=tmp_path / "out", target="onnxruntime", device="cuda", weights="int8")


@pytest.mark.parametrize("model", WEIGHTS)
def test_a_session_on_the_device_says_what_the_reference_says(
    model: str, built: BuiltOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = play_cuda(monkeypatch)
    with load(made(built, model).folder) as loaded:  # which replays the golden prompts
        tokens = np.random.default_rng(0).integers(3, 250, (2, 40))
        with loaded.session(2) as pair, loaded.session() as one:
            whole = pair.append(tokens, lengths=[40, 25], keep=1)
            alone = one.append(tokens[1:, :25])
            np.testing.assert_allclose(whole[1], alone[0], atol=0.02)
            for token in range(5):
                again, single = pair.append(np.full((2, 1), 7 + token)), one.append([[7 + token]])
                np.testing.assert_allclose(again[1], single[0], atol=0.02)
    assert memory.held == {}


def test_windows_move_in_caches_that_are_allocated_once(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = play_cuda(monkeypatch)
    tokens = np.random.default_rng(1).integers(3, 250, (1, 1300))  # W-1+slack is 523: it is shifted three times
    with load(made(built).folder) as loaded, loaded.session() as long, loaded.session() as short:
        before = set(memory.held)
        found = [long.append(tokens[:, start : start + 100])[0, 0] for start in range(0, 1300, 100)][-1]
        assert set(memory.held) == before
        expected = short.append(tokens[:, -400:])  # relative positions alone matter, and four windows of them
        np.testing.assert_allclose(found, expected[0, 0], atol=0.1)
    assert memory.streams == 0


def test_caches_without_a_window_grow_and_keep_what_they_hold(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    play_cuda(monkeypatch)
    tokens = np.random.default_rng(2).integers(3, 250, (2, 400))  # of 256 places at first
    with load(made(built, "tied").folder) as loaded, loaded.session(2) as pieces, loaded.session(2) as whole:
        for start in range(0, 400, 50):
            found = pieces.append(tokens[:, start : start + 50])
        np.testing.assert_allclose(found, whole.append(tokens), atol=0.02)


def test_a_gpu_that_computes_something_else_is_refused(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(built).folder
    with monkeypatch.context() as patch:
        memory = play_cuda(patch, error=30.0)
        with pytest.raises(NotValidated, match="does not say on cuda what the reference says"):
            load(folder)
        assert memory.held == {}
    play_cuda(monkeypatch)
    with pytest.raises(NotValidated, match="failed its replay on cuda before"):
        load(folder)


def test_caches_that_do_not_fit_leave_nothing_behind(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = play_cuda(monkeypatch)
    with load(made(built).folder) as loaded:
        allocate, before = memory.allocate, set(memory.held)

        def refuse(size: int, stream: int) -> int:
            if len(memory.held) == len(before) + 3:
                raise ArtifactError("do not fit on the GPU")
            return allocate(size, stream)

        monkeypatch.setattr(memory, "allocate", refuse)
        with pytest.raises(ArtifactError, match="do not fit"):
            loaded.session()
        assert set(memory.held) == before
        assert memory.streams == 0


def test_without_the_package_it_does_not_load(built: BuiltOnce) -> None:
    with pytest.raises(DeviceUnavailable, match=r"no device 'cuda' here: use one of cpu; .*driver.*pip install 'alize\[cuda\]'"):
        load(made(built).folder)


def test_what_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = onnxruntime_cuda.problem()
    assert said is not None and "has no CUDAExecutionProvider: pip uninstall onnxruntime" in said
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_cuda.Cuda, "problem", staticmethod(lambda: "the driver says cudaErrorInsufficientDriver"))
    said = onnxruntime_cuda.problem()
    assert said is not None and "cudaErrorInsufficientDriver): check the driver with nvidia-smi" in said


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_silent_fallback_to_the_cpu_is_refused(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    session = onnxruntime_cuda._session
    play_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime_cuda, "_session", session)  # this onnxruntime has no such provider, warns and goes on
    with pytest.raises(DeviceUnavailable, match="cannot load its CUDA provider and fell back to the CPU"):
        load(made(built).folder)


def test_the_other_devices_artifact_is_refused(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(built)
    with pytest.raises(ArtifactError, match=r"was built for cuda, in float16: for the CPU run `.*--device cpu"):
        load(one.folder, device="cpu")
    play_cuda(monkeypatch)
    rebuild = one.manifest.rebuild.replace("--device cuda", "--device cpu")
    other = dataclasses.replace(one.manifest, target=dataclasses.replace(one.manifest.target, device="cpu"), rebuild=rebuild)
    with pytest.raises(ArtifactError, match=r"was built for cpu, in float32: for a GPU run `.*--device cuda"):
        onnxruntime_runner.open(one.folder, other, "cuda", {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "bf16"}, "--weights bf16 does not run on device cuda: use fp16 or int8 or int4"),
        ({"device": "gpu"}, "is not compiled for it .its devices are cpu and cuda"),
        ({"engine": EngineOptions(sm="89")}, "--sm is for --target tensorrt and tensorrt-rtx, not for onnxruntime"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], said: str, built: BuiltOnce, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        build(str(made(built).checkpoint), output=tmp_path / "out", **({"target": "onnxruntime", "device": "cuda"} | options))


def product(columns: int, *, zeros: bool = False) -> ir.Model:
    """A product with a matrix of integers [8,columns], one scale a row, as `quantise` writes it."""
    rows = ir.Value(name="rows", shape=ir.Shape([1, columns]), type=ir.TensorType(ir.DataType.FLOAT))
    stored = ir.tensor(np.ones((8, columns), np.int8), name="up_proj.weight")
    others = [("scales", np.ones(8, np.float16)), *([("zero_points", np.ones(8, np.int8))] if zeros else [])]
    parts = [stored, *(ir.tensor(values, name=f"up_proj.weight.{part}") for part, values in others)]
    values = [ir.Value(name=part.name, type=ir.TensorType(part.dtype), shape=part.shape, const_value=part) for part in parts]
    whole = ir.node("DequantizeLinear", values, {"axis": 0}, name="up_proj.weight.dequantised")
    turned = ir.node("Transpose", [whole.outputs[0]], {"perm": [1, 0]})
    answer = ir.node("MatMul", [rows, turned.outputs[0]], name="up_proj")
    nodes = [whole, turned, answer]
    return ir.Model(
        ir.Graph([rows], [answer.outputs[0]], nodes=nodes, initializers=values, opset_imports={"": 23}), ir_version=11
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (product(56), "up_proj.weight has 56 inputs, which no group of 128, 64, 32 divides: use --weights fp16"),
        (product(64, zeros=True), "up_proj.weight has zero points, .* leave out --asymmetric"),
    ],
)
def test_what_the_product_cannot_hold_is_refused(model: ir.Model, said: str) -> None:
    with pytest.raises(LoweringFailed, match=said):
        matmul_nbits.matmul_nbits(model)
