"""The passes on the traced graph: each refuses a graph that does not have its pattern."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from alize.errors import ExportFailed
from alize.export import tidy
from alize.export.trace import trace
from alize.models.registry import family_for
from tests.export.hubs import nodes

CONFIG: dict[str, Any] = {
    "model_type": "mistral", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def traced() -> ir.Model:
    family = family_for(CONFIG)
    return trace(family, family.config.from_dict(CONFIG))


@pytest.fixture
def model() -> ir.Model:
    return traced()


def test_the_trace_allocates_no_weight(model: ir.Model) -> None:
    held = {str(value.name) for value in model.graph.initializers.values() if value.const_value is not None}
    assert held == {"lifted_tensor_0"}  # the inverse frequencies
    assert len(model.graph.initializers) == 1 + 2 * 9 + 3


def test_what_cannot_be_traced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_for(CONFIG)

    def depends_on_data(self: Any, *inputs: Any) -> Any:
        return inputs[0].nonzero() if inputs[0].sum() > 3 else inputs[1]

    monkeypatch.setattr(family.model, "forward", depends_on_data)
    with pytest.raises(ExportFailed, match=r"^torch\.export could not trace mistral: "):
        trace(family, family.config.from_dict(CONFIG))


def test_each_pass_counts_what_it_changed(model: ir.Model) -> None:
    assert tidy.name_interface(model) == 3 + 4 + 5
    assert tidy.name_layers(model) == 2 * 6 + 5
    assert tidy.slice_before_head(model) == 1


def another_input(model: ir.Model) -> None:
    model.graph.inputs.append(ir.Value(name="more", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)))


def another_constant(model: ir.Model) -> None:
    model.graph.register_initializer(ir.Value(name="more", const_value=ir.tensor([1.0])))


def fixed_batch(model: ir.Model) -> None:
    shape = model.graph.inputs[3].shape
    assert shape is not None
    model.graph.inputs[3].shape = ir.Shape([2, *shape[1:]])


def no_rotary(model: ir.Model) -> None:
    """Layer 1's keys are not rotated."""
    rotary = nodes(model, "RotaryEmbedding")[3]
    ir.convenience.replace_all_uses_with(rotary.outputs[0], rotary.inputs[0])


def no_merge(model: ir.Model) -> None:
    """Layer 0's heads are not transposed before they are laid side by side."""
    attention = nodes(model, "SlidingWindowAttention")[0]
    next(iter(attention.outputs[0].uses())).node.op_type = "Identity"


def unread(model: ir.Model) -> None:
    """Nothing reads layer 0's merged heads."""
    attention = nodes(model, "SlidingWindowAttention")[0]
    transpose = next(iter(attention.outputs[0].uses())).node
    reshape = next(iter(transpose.outputs[0].uses())).node
    reshape.replace_input_with(0, attention.inputs[0])


def three_adds(model: ir.Model) -> None:
    """Something is added to layer 1's residual stream between its halves."""
    after_attention = nodes(model, "Add")[2].outputs[0]
    model.graph.append(ir.node("Add", [after_attention, after_attention]))


def forked_projection(model: ir.Model) -> None:
    """Layer 0's output projection feeds two nodes."""
    projected = nodes(model, "Add")[0].inputs[1]
    assert projected is not None
    model.graph.append(ir.node("Neg", [projected]))


def biased_head(model: ir.Model) -> None:
    logits = model.graph.outputs[0]
    add = ir.node("Add", [logits, logits])
    model.graph.append(add)
    model.graph.outputs[0] = add.outputs[0]


BROKEN: dict[str, tuple[Callable[[ir.Model], None], str, str]] = {
    # what is wrong -> how the graph is spoilt, the pass that sees it, what it says
    "inputs": (another_input, "name_interface", "has 8 inputs and 5 outputs: not a decoder's"),
    "constants": (another_constant, "name_interface", "has 2 constants, not one"),
    "batch": (fixed_batch, "name_interface", r"past_key_values\.0\.key: the tracer took batch_size to be 2 always"),
    "rotary": (no_rotary, "name_layers", "layer 1: its key does not come from a rotary embedding"),
    "merge": (no_merge, "name_layers", "feeds Identity and Reshape where its heads should be merged"),
    "unread": (unread, "name_layers", "feeds 0 nodes, not one, on the way from an attention to its residual add"),
    "residual": (three_adds, "name_layers", "layer 1: the residual stream has 3 adds after the attention, not 1"),
    "projection": (forked_projection, "name_layers", "feeds 2 nodes, not one, on the way from an attention"),
    "head": (biased_head, "slice_before_head", "the head cannot be told from the rest"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_pass_refuses_what_it_does_not_know(name: str, model: ir.Model) -> None:
    spoil, step, message = BROKEN[name]
    spoil(model)
    with pytest.raises(ExportFailed, match=message):
        getattr(tidy, step)(model)
