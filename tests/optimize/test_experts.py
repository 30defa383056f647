"""Every form of a lowered mixture of experts: logits, choices, names, and the passes by themselves."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from alize.compilers import COMPILERS, compiler_for, lowering_options
from alize.errors import LoweringFailed, UsageError
from alize.export.hub import export_graph, export_hub
from alize.models.ops import choose_experts
from alize.optimize import lower_onnxruntime, lower_openvino
from alize.optimize.expert_nodes import APART, PARTS, sparse_moes
from alize.optimize.experts_apart import experts_apart
from alize.optimize.experts_tiled import experts_tiled
from alize.optimize.passes import drop_functions
from alize.optimize.store_weights import store_weights
from tests.export.hubs import (
    DTYPES,
    TOLERANCE,
    Array,
    Tiny,
    checked,
    chunks,
    left_padded,
    make_tiny,
    nodes,
    onnx_logits,
    onnx_session,
    torch_logits,
)
from tests.optimize.lowered import LOWERINGS, logits, lower
from tests.optimize.test_lowering import LOWER_ELSEWHERE, digests
from tests.tiny import KINDS, edit_tensor

FORMS = (("onnxruntime", "apart"), ("openvino", "apart"), ("openvino", "tiled"))
MIXTURES = tuple(kind for kind in KINDS if kind.startswith("mixtral"))
TOTAL = 15

Form = tuple[str, str]


@pytest.fixture(scope="module", params=MIXTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param])


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def lowered(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    target, form = request.param
    folder = tmp_path_factory.mktemp("lowered") / target
    lower(tiny, target, folder, weights="bf16", experts=form)
    return target, form, folder


@pytest.mark.parametrize("sizes", [[TOTAL], [1] * TOTAL, [9, 1, 1, 4]], ids=["at once", "token by token", "chunks"])
def test_logits(lowered: tuple[str, str, Path], tiny: Tiny, sizes: list[int]) -> None:
    target, _, folder = lowered
    tokens, (mask, positions) = tiny.tokens(1, TOTAL), left_padded([0], TOTAL)
    found = logits(target, folder, tiny, chunks(tokens, mask, positions, sizes))
    np.testing.assert_allclose(found, torch_logits(tiny.model("bf16"), tokens, mask, positions), rtol=0, atol=TOLERANCE)


def test_padded_rows(lowered: tuple[str, str, Path], tiny: Tiny) -> None:
    target, _, folder = lowered
    tokens, (mask, positions) = tiny.tokens(3, TOTAL), left_padded([0, 4, 11], TOTAL)
    found = logits(target, folder, tiny, chunks(tokens, mask, positions, [TOTAL - 2, 1, 1]))
    expected = torch_logits(tiny.model("bf16"), tokens, mask, positions)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=TOLERANCE)


def test_structure(lowered: tuple[str, str, Path], tiny: Tiny) -> None:
    """As many experts run as the router chooses, in a prefill of equal tokens and in a decode step."""
    target, form, folder = lowered
    layers, experts, top_k = tiny.config.num_layers, tiny.config.num_experts, tiny.config.experts_per_token
    found = LOWERINGS[target].check_structure(folder, tiny.info(), {"experts": form})["experts"]
    if form == "tiled":
        assert found == {"form": "tiled", "gather_matmul_nodes": 3 * layers, "experts_reachable": layers * experts}
        return
    counts = {"experts_executed": layers * top_k, "experts_reachable": layers * experts}
    assert found == {
        "form": "apart",
        "matmul_nodes": 2 * layers * experts,
        "prefill": {"tokens": 16, **counts},
        "decode": {"tokens": 1, **counts},
    }


def test_stored_weights(lowered: tuple[str, str, Path], tiny: Tiny) -> None:
    """Each expert by its own name, with the checkpoint's values."""
    target, _, folder = lowered
    stored = {name: values.clone() for name, values in COMPILERS[target].probe.stored_weights(folder)}
    expected = tiny.model("bf16").state_dict()
    for part in PARTS:
        for expert, values in enumerate(expected[f"model.layers.1.mlp.experts.{part}"]):
            found = stored[f"model.layers.1.mlp.experts.{expert}.{part}.weight"]
            assert found.dtype == torch.bfloat16 and torch.equal(found.float(), values), (part, expert)


# one layer, cut out


def cut(lowered: tuple[str, str, Path], hidden: Array, layer: int = 1) -> tuple[Array, Array, Array]:
    target, _, folder = lowered
    return COMPILERS[target].probe.cut_experts(folder, layer, hidden)


@pytest.mark.parametrize("count", [1, 40])
def test_a_layer_cut_out(lowered: tuple[str, str, Path], tiny: Tiny, count: int) -> None:
    mlp: Any = tiny.model("bf16").layers[1].mlp
    hidden = torch.randn(count, tiny.config.hidden_size, generator=torch.Generator().manual_seed(count))
    found, experts, output = cut(lowered, hidden.numpy())
    with torch.inference_mode():
        expected, answer = mlp.gate(hidden), mlp(hidden[None])[0]
    assert experts.dtype == np.int64
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
    assert (experts == choose_experts(expected, tiny.config.experts_per_token).numpy()).all()
    np.testing.assert_allclose(output, answer.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_ties(form: Form, tmp_path: Path) -> None:
    """Of 8 experts, 0 to 5 always have one and the same logit and 6 and 7 another: the lower index is taken, as by PyTorch."""
    tiny = make_tiny(tmp_path / "tiny", experts=8, top_k=3, layers=2, shards=1)
    router = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))[[0, 0, 0, 0, 0, 0, 1, 1]]
    edit_tensor(tiny.checkpoint.folder, "model.layers.1.block_sparse_moe.gate.weight", router)
    tiny = Tiny(type(tiny.checkpoint).open(tiny.checkpoint.folder))
    lower(tiny, form[0], tmp_path / "out", experts=form[1])
    hidden = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    found, experts, output = cut((*form, tmp_path / "out"), hidden)
    assert (experts == choose_experts(torch.from_numpy(found), 3).numpy()).all()
    assert {tuple(chosen) for chosen in experts.tolist()} == {(0, 1, 2), (6, 7, 0)}
    expected = tiny.model().layers[1].mlp(torch.from_numpy(hidden)[None])[0]  # type: ignore[operator]
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_all_tokens_to_the_same_experts(form: Form, tmp_path: Path) -> None:
    """The others get no row at all."""
    tiny = make_tiny(tmp_path / "tiny", experts=4, top_k=2, layers=2, shards=1)
    lower(tiny, form[0], tmp_path / "out", experts=form[1])
    mlp: Any = tiny.model().layers[1].mlp
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(2)) * (1 + torch.arange(30)[:, None])
    _, experts, output = cut((*form, tmp_path / "out"), hidden.numpy())
    assert len(np.unique(experts)) == 2
    expected = mlp(hidden[None])[0].detach().numpy()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


# the passes


@pytest.mark.parametrize("weights", DTYPES)
def test_experts_apart(tiny: Tiny, weights: str, tmp_path: Path) -> None:
    hub, config = export_hub(tiny.checkpoint), tiny.config
    assert experts_apart(hub) == config.num_layers
    store_weights(weights)(hub)
    drop_functions_of_experts(hub)
    assert not sparse_moes(hub)
    assert not [name for name in hub.graph.initializers if re.search(r"experts\.\w+_proj$", name)]  # no stack is left
    names = {node.name for node in nodes(hub, "MatMul")}
    for layer in range(config.num_layers):
        for expert in range(config.num_experts):
            assert {f"layers.{layer}.experts.{expert}.{part}" for part in APART} <= names
    values = {value.name for node in hub.graph for value in node.outputs}
    assert {f"layers.0.{part}" for part in ("moe_input", "router_logits", "experts", "moe")} <= values
    tokens, (mask, positions) = tiny.tokens(2, TOTAL), left_padded([0, 3], TOTAL)
    session = onnx_session(checked(hub, tmp_path / "model.onnx").SerializeToString())
    found = onnx_logits(session, chunks(tokens, mask, positions, [9, 1, 5]), tiny.no_past(2))
    expected = torch_logits(tiny.model(weights), tokens, mask, positions)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=TOLERANCE)


def drop_functions_of_experts(hub: ir.Model) -> None:
    for name in [name for name in hub.functions if name[1] == "SparseMoE"]:
        del hub.functions[name]


def test_few_nodes(tmp_path: Path) -> None:
    """At one token it is nodes that cost: 26 a layer besides the multiplications, and none for each expert."""
    hub = export_hub(make_tiny(tmp_path / "tiny", experts=8, layers=2).checkpoint)
    experts_apart(hub)
    mine = [str(node.name) for node in hub.graph if re.match(r"layers\.1\.(moe|expert|router)", str(node.name))]
    products = [name for name in mine if re.fullmatch(r"layers\.1\.experts\.\d\.\w+_proj(\.transpose)?", name)]
    assert (len(products), len(mine) - len(products)) == (2 * 2 * 8, 26)


@pytest.mark.parametrize("step", [experts_apart, experts_tiled])
def test_what_the_passes_refuse(step: Any, tiny: Tiny, tmp_path: Path) -> None:
    dense = make_tiny(tmp_path / "tiny", layers=1)
    with pytest.raises(LoweringFailed, match=f"^{step.__name__}: the graph has no SparseMoE"):
        step(export_hub(dense.checkpoint))
    with pytest.raises(LoweringFailed, match=r"layers\.0\.moe: its gate_proj does not come from the checkpoint"):
        step(export_graph(tiny.checkpoint.config))


def test_sizes_have_to_be_static(tiny: Tiny) -> None:
    for index, message in ((0, "a hidden size of"), (1, "logits have .* experts: the number has to be static")):
        hub = export_hub(tiny.checkpoint)
        value = sparse_moes(hub)[0].inputs[index]
        assert value is not None
        value.shape = ir.Shape(["batch_size", "sequence_length", "free"])
        with pytest.raises(LoweringFailed, match=message):
            experts_apart(hub)


def test_lists_of_passes() -> None:
    """Those of a model without experts are what they were."""
    for lowering in (lower_onnxruntime, lower_openvino):
        usual = [step.__name__ for step in lowering.passes("fp16")]
        assert [step.__name__ for step in lowering.passes("fp16", "apart")] == ["experts_apart", *usual]
    assert lower_openvino.passes("fp16", "tiled")[0] is experts_tiled
    with pytest.raises(UsageError, match="experts 'tiled' cannot be lowered to for this target: choose apart"):
        lower_onnxruntime.passes("fp16", "tiled")


def test_the_form_is_in_the_passes(tiny: Tiny, tmp_path: Path) -> None:
    assert lower(tiny, "openvino", tmp_path / "usual")[0] == "experts_apart"
    tiled = lower(tiny, "openvino", tmp_path / "tiled", experts="tiled")
    assert (tiled[0], tiled[-1]) == ("experts_tiled", "lower_index_first")


# the option


@pytest.mark.parametrize(
    ("target", "device", "asked", "form"),
    [
        ("openvino", "cpu", None, "apart"),
        ("openvino", "cpu", "tiled", "tiled"),
        ("openvino", "gpu", None, "tiled"),
        ("openvino", "gpu", "apart", "apart"),
        ("onnxruntime", "cpu", None, "apart"),
    ],
)
def test_form_by_device(target: str, device: str, asked: str | None, form: str, tiny: Tiny) -> None:
    assert lowering_options(compiler_for(target), tiny.info(), device=device, experts=asked) == {"experts": form}


def test_forms_that_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--experts tiled is not a form of target onnxruntime: use apart"):
        lowering_options(compiler_for("onnxruntime"), tiny.info(), device="cpu", experts="tiled")
    dense = make_tiny(tmp_path / "tiny", layers=1).info()
    assert lowering_options(compiler_for("openvino"), dense, device="cpu") == {}
    with pytest.raises(UsageError, match=r"--experts apart: the model has no experts; leave it out"):
        lowering_options(compiler_for("openvino"), dense, device="cpu", experts="apart")


def test_dropping_functions(tiny: Tiny) -> None:
    hub = export_hub(tiny.checkpoint)
    experts_apart(hub)
    assert drop_functions(hub) == 2


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    """Again in this process, and in another one."""
    tiny = make_tiny(tmp_path / "tiny", **KINDS["mixtral"])
    for name in ("first", "second"):
        for target in LOWERINGS:
            lower(tiny, target, tmp_path / name / target, weights="bf16")
        lower(tiny, "openvino", tmp_path / name / "tiled", weights="bf16", experts="tiled")
    command = [sys.executable, "-c", LOWER_ELSEWHERE, str(tiny.checkpoint.folder), str(tmp_path / "elsewhere")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    for target in LOWERINGS:
        assert digests(tmp_path / "elsewhere" / target) == digests(tmp_path / "first" / target)
    for form in (*LOWERINGS, "tiled"):
        assert digests(tmp_path / "second" / form) == digests(tmp_path / "first" / form)
