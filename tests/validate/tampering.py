"""Ways to get a lowering wrong: each takes a hub model and spoils it, as a faulty pass or engine would."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from alize.compilers import compiler_for
from alize.drafting import model_info
from alize.errors import LoweringFailed
from alize.export.hub import export_hub
from alize.export.weights import StreamedWeight
from alize.models.checkpoint import Checkpoint
from alize.optimize import quantise
from alize.optimize.passes import attentions
from alize.optimize.quantisation import Form
from alize.optimize.round_to_integers import Integers

Tamper = Callable[[ir.Model], None]


def nothing(hub: ir.Model) -> None:
    """The control: an untouched lowering passes."""


def corrupt_weight(hub: ir.Model) -> None:
    """One value of one matrix of layer 1, off by a quarter."""
    value = hub.graph.initializers["model.layers.1.mlp.up_proj.weight"]
    original = value.const_value
    assert isinstance(original, StreamedWeight)

    def load() -> torch.Tensor:
        tensor = original.load().clone()
        tensor[3, 5] += 0.25
        return tensor

    value.const_value = StreamedWeight(load, dtype=torch.float32, shape=[int(size) for size in original.shape], name=value.name)


def window_of(change: Callable[[int], int]) -> Tamper:
    """Another window in every layer."""

    def apply(hub: ir.Model) -> None:
        for node in attentions(hub):
            window = node.attributes["window"].as_int()
            node.attributes["window"] = ir.AttrInt64("window", change(window))

    return apply


def shift_rope(hub: ir.Model) -> None:
    """Layer 0's queries are turned as if they stood one position later than they do; its keys are not."""
    graph = hub.graph
    angle = next(node for node in graph if node.op_type == "Cos").inputs[0]
    rotary = next(node for node in graph if node.name == "layers.0.self_attn.rotary_query")
    later = ir.node("Add", [angle, graph.initializers["inverse_frequencies"]])
    cos, sin = ir.node("Cos", [later.outputs[0]]), ir.node("Sin", [later.outputs[0]])
    graph.insert_before(rotary, [later, cos, sin])
    rotary.replace_input_with(1, cos.outputs[0])
    rotary.replace_input_with(2, sin.outputs[0])


def swap_heads(hub: ir.Model) -> None:
    """Layer 1's first and last query heads change places on the way into the attention."""
    attention = attentions(hub)[1]
    query = attention.inputs[0]
    assert query is not None and query.shape is not None
    heads = int(query.shape[1])
    order = [heads - 1, *range(1, heads - 1), 0]
    constant = ir.node("Constant", [], {"value": ir.tensor(order, dtype=ir.DataType.INT64)})
    swapped = ir.node("Gather", [query, constant.outputs[0]], {"axis": 1}, name="swapped_heads")
    swapped.outputs[0].shape, swapped.outputs[0].type, swapped.outputs[0].name = query.shape, query.type, "swapped_heads"
    hub.graph.insert_before(attention, [constant, swapped])
    attention.replace_input_with(0, swapped.outputs[0])


Spoil = Callable[[Integers], None]

SPOILT = "model.layers.1.mlp.up_proj.weight"


def change_nibble(integers: Integers) -> None:
    """One integer of 4 bits, to its neighbour."""
    integers.values[3, 5] ^= 1


def change_scale(integers: Integers) -> None:
    """One scale, by 6 per cent."""
    integers.scales[2, 1] *= 1.0625


@contextlib.contextmanager
def spoilt_rounding(spoil: Spoil) -> Iterator[None]:
    """While it lasts, a pass that rounds wrongly: the integers of one matrix of layer 1."""
    right = quantise.quantised

    def wrong(name: str, rows: torch.Tensor, form: Form) -> Integers:
        found = right(name, rows, form)
        if name == SPOILT:
            spoil(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "quantised", wrong)
        yield


def lower(checkpoint: Checkpoint, target: str, folder: Path, tamper: Tamper, *, weights: str = "fp32") -> str | None:
    """Lowers the spoilt hub into FOLDER. Returns what the structure check says of it, None when it sees nothing wrong."""
    hub = export_hub(checkpoint)
    tamper(hub)
    folder.mkdir(parents=True)
    lowering = compiler_for(target).lowering
    lowering.lower(hub, folder, weights=weights)
    try:
        lowering.check_structure(folder, model_info(checkpoint), {}, weights=weights)
    except LoweringFailed as error:
        return str(error)
    return None
