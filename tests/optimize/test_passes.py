"""Each pass on the hub by itself: what it changes, that it changes no logits, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from alize.errors import LoweringFailed, UsageError
from alize.export.hub import export_graph, export_hub
from alize.export.weights import ONNX_DTYPES, StreamedWeight
from alize.optimize import lower_onnxruntime, lower_openvino, passes
from alize.optimize.group_query_attention import group_query_attention
from alize.optimize.keep_all_logits import keep_all_logits
from alize.optimize.passes import Pass, attentions, drop_functions, run
from alize.optimize.rotary_before_split import rotary_before_split
from alize.optimize.store_weights import PRECISIONS, store_weights
from alize.optimize.transpose_weights import transpose_weights
from tests.export.hubs import (
    TOLERANCE,
    Tiny,
    Watch,
    checked,
    chunks,
    left_padded,
    make_tiny,
    nodes,
    onnx_logits,
    onnx_session,
    torch_logits,
)

H, K, D = 4, 2, 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", window=6, layers=2)


@pytest.fixture
def hub(tiny: Tiny) -> ir.Model:
    return export_hub(tiny.checkpoint)


def assert_same_logits(model: ir.Model, tiny: Tiny, folder: Path, *, weights: str = "fp32") -> None:
    """onnx.checker passes, and onnxruntime still computes what PyTorch does."""
    tokens, (mask, positions) = tiny.tokens(1, 15), left_padded([0], 15)
    session = onnx_session(checked(model, folder / "model.onnx").SerializeToString())
    found = onnx_logits(session, chunks(tokens, mask, positions, [9, 1, 5]), tiny.no_past(1))
    np.testing.assert_allclose(found, torch_logits(tiny.model(weights), tokens, mask, positions), rtol=0, atol=TOLERANCE)


def weights_of(model: ir.Model) -> dict[str, StreamedWeight]:
    tensors = {str(value.name): value.const_value for value in model.graph.initializers.values()}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, StreamedWeight)}


# store_weights


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_tiny(folder, layers=1, tied=True, window=4, dtype=request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_store_weights(source: Tiny, precision: str, tmp_path: Path) -> None:
    """Matrices in the precision that is asked for, vectors in float32; a Cast only where something is to be converted."""
    model = export_hub(source.checkpoint)
    assert store_weights(precision)(model) == 11
    for name, weight in weights_of(model).items():
        dtype = PRECISIONS[precision] if len(weight.shape) > 1 else torch.float32
        assert model.graph.initializers[name].dtype == weight.dtype == ONNX_DTYPES[dtype], name
        values = source.checkpoint.tensor(name).to(dtype)
        assert weight.tobytes() == values.contiguous().view(torch.uint8).numpy().tobytes(), name
    casts = [node.inputs[0] for node in nodes(model, "Cast")]
    converted = {value.name for value in casts if value is not None and value.is_initializer()}
    matrices = {name for name, weight in weights_of(model).items() if len(weight.shape) > 1}
    assert converted == (set() if precision == "fp32" else matrices)
    (rows,) = (node.outputs[0] for node in nodes(model, "Gather"))
    assert rows.dtype == ONNX_DTYPES[PRECISIONS[precision]]
    assert_same_logits(model, source, tmp_path, weights=precision)


@pytest.mark.parametrize("precision", ["int8", "f32", ""])
def test_store_weights_knows_its_precisions(precision: str) -> None:
    with pytest.raises(UsageError, match=f"weights '{precision}' can't be stored yet: choose one of fp32, fp16, bf16"):
        store_weights(precision)


def test_store_weights_refuses_a_graph_without_weights(tiny: Tiny) -> None:
    with pytest.raises(LoweringFailed, match="store_weights: the graph has no weights"):
        store_weights("fp32")(export_graph(tiny.checkpoint.config))


# keep_all_logits


def test_keep_all_logits(tiny: Tiny, hub: ir.Model, tmp_path: Path) -> None:
    assert keep_all_logits(hub) == 1
    assert "num_logits_to_keep" not in {value.name for value in hub.graph.inputs} | set(hub.graph.initializers)
    assert not nodes(hub, "Slice") and not nodes(hub, "Neg")
    assert hub.graph.outputs[0].shape == ir.Shape(["batch_size", "sequence_length", 320])
    assert_same_logits(hub, tiny, tmp_path)


def test_keep_all_logits_refuses_a_head_without_its_slice(hub: ir.Model) -> None:
    keep_all_logits(hub)
    with pytest.raises(LoweringFailed, match="keep_all_logits: the head does not follow the hub's Slice"):
        keep_all_logits(hub)


# rotary_before_split


def test_rotary_before_split(tiny: Tiny, hub: ir.Model, tmp_path: Path) -> None:
    """Queries and keys are rotated with their heads side by side, [B,S,H*D], and split afterwards."""
    assert rotary_before_split(hub) == 4
    for layer in range(2):
        for part, heads in (("query", H), ("key", K)):
            (node,) = (node for node in hub.graph if node.name == f"layers.{layer}.self_attn.rotary_{part}")
            assert node.attributes["num_heads"].as_int() == heads
            assert node.outputs[0].shape is not None and list(node.outputs[0].shape)[2] == heads * D
            assert [use.op_type for use in node.outputs[0].consumers()] == ["Reshape"]
    assert_same_logits(hub, tiny, tmp_path)


def rotary_of_values(model: ir.Model) -> None:
    """Layer 0's query is something else than its split heads."""
    rotary = next(node for node in model.graph if node.name == "layers.0.self_attn.rotary_query")
    negated = ir.node("Neg", [rotary.inputs[0]])
    model.graph.insert_before(rotary, negated)
    rotary.replace_input_with(0, negated.outputs[0])


def shared_heads(model: ir.Model) -> None:
    """Layer 0's unrotated key is read as its value too: moving the rotation would turn both."""
    rotary = next(node for node in model.graph if node.name == "layers.0.self_attn.rotary_key")
    attentions(model)[0].replace_input_with(2, rotary.inputs[0])


def no_rotary(model: ir.Model) -> None:
    for node in nodes(model, "RotaryEmbedding"):
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        model.graph.remove(node)


# transpose_weights


def test_transpose_weights(tiny: Tiny, hub: ir.Model, tmp_path: Path) -> None:
    store_weights("fp16")(hub)
    before = weights_of(hub)
    assert transpose_weights(hub) == 2 * 7 + 1
    after = weights_of(hub)
    for name, weight in before.items():
        if len(weight.shape) == 1 or name == "model.embed_tokens.weight":
            assert after[name] is weight
        else:
            assert name not in after
            assert np.array_equal(after[f"{name}.transposed"].numpy(), weight.numpy().T), name
    assert all(len(node.outputs[0].shape or ()) == 4 for node in nodes(hub, "Transpose"))  # of heads only
    assert_same_logits(hub, tiny, tmp_path, weights="fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transpose_weights_leaves_a_tied_embedding(source: Tiny, precision: str, tmp_path: Path) -> None:
    """Its rows are looked up as well: one copy, stored as it is looked up."""
    model = export_hub(source.checkpoint)
    store_weights(precision)(model)
    embedding = weights_of(model)["model.embed_tokens.weight"]
    assert transpose_weights(model) == 7
    assert weights_of(model)["model.embed_tokens.weight"] is embedding
    assert_same_logits(model, source, tmp_path, weights=precision)


# group_query_attention


@pytest.mark.parametrize("window", [0, 6])
def test_group_query_attention(window: int, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "tiny", window=window, layers=2)
    hub = export_hub(tiny.checkpoint)
    rotary_before_split(hub)
    assert group_query_attention(hub) == 2
    drop_functions(hub)
    assert attentions(hub) == [] and hub.opset_imports == {"": 23, "com.microsoft": 1}
    for layer, node in enumerate(nodes(hub, "GroupQueryAttention")):
        found = {name: attribute.value for name, attribute in node.attributes.items()}
        scale = found.pop("scale")
        assert found == {"num_heads": H, "kv_num_heads": K, "local_window_size": window or -1}
        assert scale == pytest.approx(D**-0.5)
        assert (node.name, node.domain) == (f"layers.{layer}.self_attn", "com.microsoft")
        past = [value.name for value in node.inputs[3:5] if value is not None]
        assert past == [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        assert [value.name for value in node.outputs] == [
            f"layers.{layer}.heads",
            f"present.{layer}.key",
            f"present.{layer}.value",
        ]
        assert node.inputs[5:7] == nodes(hub, "GroupQueryAttention")[0].inputs[5:7]  # computed once for all layers
    assert not nodes(hub, "Transpose") or all(len(node.outputs[0].shape or ()) != 4 for node in nodes(hub, "Transpose"))
    assert_same_logits(hub, tiny, tmp_path)


def test_group_query_attention_after_heads_were_split(tiny: Tiny, hub: ir.Model, tmp_path: Path) -> None:
    """Without rotary_before_split queries come split into heads: they are laid side by side again."""
    assert group_query_attention(hub) == 2
    drop_functions(hub)
    assert_same_logits(hub, tiny, tmp_path)


def no_attention(model: ir.Model) -> None:
    for node in attentions(model):
        node.domain = "another.one"


def heads_used_unmerged(model: ir.Model) -> None:
    output = attentions(model)[1].outputs[0]
    model.graph.append(ir.node("Neg", [output]))


def free_heads(model: ir.Model) -> None:
    query = attentions(model)[0].inputs[0]
    assert query is not None
    query.shape = ir.Shape(["batch_size", "heads", "sequence_length", D])


def every_weight_shared(model: ir.Model) -> None:
    """Each Transpose is one of two readers."""
    store_weights("fp32")(model)
    for value in list(model.graph.initializers.values()):
        model.graph.append(ir.node("Neg", [value]))


REFUSED: dict[str, tuple[Callable[[ir.Model], None], Pass, str]] = {
    # what is missing -> how the hub is spoilt, the pass, what it says
    "rotary": (no_rotary, rotary_before_split, "the graph has no RotaryEmbedding"),
    "split": (rotary_of_values, rotary_before_split, r"layers\.0\.self_attn\.rotary_query does not follow the split into heads"),
    "sole reader": (shared_heads, rotary_before_split, r"layers\.0\.self_attn\.rotary_key is not all that reads its heads"),
    "weights": (every_weight_shared, transpose_weights, "no weight is read by one MatMul alone"),
    "attention": (no_attention, group_query_attention, "the graph has no SlidingWindowAttention"),
    "merge": (heads_used_unmerged, group_query_attention, r"layers\.1\.self_attn feeds Transpose, Neg, Reshape: not its merged"),
    "heads": (free_heads, group_query_attention, "no static number of heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pass_that_does_not_apply_says_why(name: str, hub: ir.Model) -> None:
    spoil, step, message = REFUSED[name]
    spoil(hub)
    with pytest.raises(LoweringFailed, match=f"^{step.__name__}: .*{message}"):
        step(hub)


# the list of passes


def test_drop_functions(hub: ir.Model) -> None:
    assert drop_functions(hub) == 1
    assert not hub.functions and hub.opset_imports["ai.alize"] == 1  # its nodes are still there
    no_attention(hub)
    drop_functions(hub)
    assert "ai.alize" not in hub.opset_imports


def test_passes_run_in_order_and_are_counted(hub: ir.Model) -> None:
    assert run(hub, (store_weights("fp16"), keep_all_logits)) == {"store_weights_fp16": 21, "keep_all_logits": 1}


def test_lowerings_are_visible_lists() -> None:
    assert [step.__name__ for step in lower_onnxruntime.passes("bf16")] == [
        "store_weights_bf16",
        "rotary_before_split",
        "transpose_weights",
        "group_query_attention",
        "drop_functions",
    ]
    assert [step.__name__ for step in lower_openvino.passes("fp16")] == [
        "store_weights_fp16",
        "keep_all_logits",
        "drop_functions",
    ]


def test_writing_streams(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that pass through the passes are converted when they are written, one after another."""
    watch = Watch(monkeypatch)
    hub = export_hub(tiny.checkpoint)
    run(hub, lower_onnxruntime.passes("fp16"))
    assert not watch.given
    passes.write(hub, tmp_path / "model.onnx")
    assert len(watch.given) == len(tiny.checkpoint.tensors)
    assert watch.most == 1
