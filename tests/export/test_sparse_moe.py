"""The body of SparseMoE, on the engine and by definition, against the operator of PyTorch that it specifies."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from alize.export.functions import function_bodies
from alize.models.ops import choose_experts, sparse_moe
from tests.export.hubs import TOLERANCE, Tiny, chunks, left_padded, make_tiny, onnx_logits, onnx_session, torch_logits
from tests.tiny import KINDS

INPUTS = {
    "hidden": ("B", "S", "M"),
    "router_logits": ("B", "S", "E"),
    "gate_proj": ("E", "I", "M"),
    "up_proj": ("E", "I", "M"),
    "down_proj": ("E", "M", "I"),
}
B, S, M, I, E = 2, 5, 12, 20, 4  # noqa: E741 - the letters of the operator's contract


def model(top_k: int) -> onnx.ModelProto:
    """One node of the operator, every size free."""
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in INPUTS.items()]
    outputs = [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ("B", "S", "M"))]
    node = onnx.helper.make_node("SparseMoE", list(INPUTS), ["output"], domain="ai.alize", top_k=top_k)
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("ai.alize", 1)]
    functions = [ir.to_proto(body) for body in function_bodies()]
    graph = onnx.helper.make_graph([node], "operator", inputs, outputs)
    made = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)
    onnx.checker.check_model(made, full_check=True)
    return made


@cache
def session(top_k: int) -> onnxruntime.InferenceSession:
    return onnx_session(model(top_k).SerializeToString())


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(logits: torch.Tensor, *, seed: int = 0, hidden: int = M, inner: int = I) -> dict[str, np.ndarray]:
    experts = logits.shape[-1]
    stacks = [(experts, inner, hidden), (experts, inner, hidden), (experts, hidden, inner)]
    made = [random(*logits.shape[:2], hidden, seed=seed), logits]
    made += [0.5 * random(*shape, seed=seed + 1 + index) for index, shape in enumerate(stacks)]
    return {name: value.numpy() for name, value in zip(INPUTS, made, strict=True)}


def operator(feeds: dict[str, np.ndarray], top_k: int) -> np.ndarray:
    return np.asarray(sparse_moe(*(torch.from_numpy(value) for value in feeds.values()), top_k).numpy())


def compare(feeds: dict[str, np.ndarray], top_k: int) -> None:
    (found,) = session(top_k).run(["output"], feeds)
    expected = operator(feeds, top_k)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


ROUTINGS = {
    "as it comes": random(B, S, E, seed=9),
    "one token": random(1, 1, E, seed=9),
    "one token of each row": random(3, 1, E, seed=9),
    "all equal": torch.zeros(B, S, E),
    "ties of two": torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(B, S, E).contiguous(),
    "ties for the last place": torch.tensor([1.0, 0.5, 2.0, 0.5]).expand(B, S, E).contiguous(),
    "all tokens to the same experts": torch.tensor([9.0, 0.0, 8.0, 1.0]).expand(B, S, E) + 0.1 * random(B, S, E, seed=3),
    "experts without a token": torch.tensor([0.0, -9.0, 0.0, -9.0]).expand(B, S, E) + random(B, S, E, seed=3),
    "far apart": 80 * random(B, S, E, seed=5),
}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ROUTINGS)
def test_body_is_the_operator(name: str, top_k: int) -> None:
    compare(tensors(ROUTINGS[name].float().contiguous()), top_k)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_size(data: st.DataObject) -> None:
    """Logits of few values, so that ties are common."""
    draw = data.draw
    batch, new, experts = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    seed, levels = draw(st.integers(0, 99)), draw(st.sampled_from([2, 3, 1000]))
    logits = torch.randint(levels, (batch, new, experts), generator=torch.Generator().manual_seed(seed)).float()
    sizes = {"hidden": draw(st.integers(1, 9)), "inner": draw(st.integers(1, 9))}
    compare(tensors(logits, seed=seed, **sizes), draw(st.integers(1, experts)))


def test_by_definition() -> None:
    """onnx's own reference implementation reads the body in the same way."""
    for name in ("as it comes", "all equal"):
        feeds = tensors(ROUTINGS[name])
        (found,) = ReferenceEvaluator(model(2)).run(["output"], feeds)
        np.testing.assert_allclose(found, operator(feeds, 2), rtol=1e-5, atol=1e-5)


def test_openvino_runs_the_inlined_body(tmp_path: Path) -> None:
    """Without any conversion of ours; equal logits aside, whose order its TopK leaves open."""
    import openvino

    onnx.save(onnx.inliner.inline_local_functions(model(2)), tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for name in ("as it comes", "one token", "experts without a token"):
        feeds = tensors(ROUTINGS[name].float().contiguous())
        np.testing.assert_allclose(compiled(feeds)[0], operator(feeds, 2), rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lower_index() -> None:
    """What the tests above compare with."""
    assert choose_experts(ROUTINGS["all equal"], 2).unique().tolist() == [0, 1]
    assert choose_experts(ROUTINGS["ties for the last place"][0, 0], 3).tolist() == [2, 0, 1]


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind.startswith("mixtral")])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param])


def test_hub_runs_as_it_is(mixture: Tiny) -> None:
    """A whole model through its functions, unmodified onnxruntime, padded rows and a cache."""
    onnx.checker.check_model(mixture.saved, full_check=True)
    bodies = {body.name for body in onnx.load(mixture.saved, load_external_data=False).functions}
    assert bodies == {"SlidingWindowAttention", "SparseMoE"}
    tokens, (mask, positions) = mixture.tokens(2, 11), left_padded([0, 3], 11)
    steps = chunks(tokens, mask, positions, [7, 1, 3])
    found = onnx_logits(onnx_session(mixture.saved), steps, mixture.no_past(2))
    expected = torch_logits(mixture.model(), tokens, mask, positions)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=0, atol=TOLERANCE)


def test_names(mixture: Tiny) -> None:
    proto = onnx.load(mixture.saved, load_external_data=False)
    config = mixture.config
    nodes = {node.name: node for node in proto.graph.node if node.op_type == "SparseMoE"}
    assert list(nodes) == [f"layers.{layer}.moe" for layer in range(config.num_layers)]
    for name, node in nodes.items():
        layer = name.removesuffix(".moe")
        assert list(node.input)[:2] == [f"{layer}.moe_input", f"{layer}.router_logits"] and list(node.output) == [name]
        assert [attribute.i for attribute in node.attribute] == [config.experts_per_token]
