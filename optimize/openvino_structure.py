"""Reads from an IR, its compiled graph and its paged-attention form what `lower_openvino` asserts."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alize.errors import LoweringFailed
from alize.optimize.openvino_slices import cut_layers

__all__ = [
    "compile_ir",
    "execution_kinds",
    "execution_layers",
    "mask_windows",
    "norms_of_ones",
    "one_line",
    "paged_attentions",
    "paged_form",
    "paged_windows",
]

_LAYER = re.compile(r"layers\.(\d+)\.self_attn")
_PARTS = {  # what each layer must have in the compiled graph: operator, the name that the hub gave the node
    "stateful attention": ("ScaledDotProductAttention", "layers.{}.self_attn"),
    "RoPE of the query": ("RoPE", "layers.{}.self_attn.rotary_query"),
    "RoPE of the key": ("RoPE", "layers.{}.self_attn.rotary_key"),
    "RMS before attention": ("RMS", "layers.{}.input_layernorm"),
    "RMS before the MLP": ("RMS", "layers.{}.post_attention_layernorm"),
}


def mask_windows(path: Path) -> dict[int, int]:
    """Layer -> the window that its attention mask cuts at (0 = none)."""
    import openvino

    model = openvino.Core().read_model(path)
    windows = {}
    for node in model.get_ordered_ops():
        match = _LAYER.fullmatch(node.get_friendly_name())
        if match and node.get_type_name() == "ScaledDotProductAttention":
            windows[int(match[1])] = _window_of(node.input_value(3).get_node())
    return windows


def _window_of(mask: Any) -> int:
    """-offset of the one Greater(keys, Add(queries, offset)) above the mask."""
    offsets = [
        int(bound.input_value(1).get_node().get_data())
        for node in _above(mask)
        if node.get_type_name() == "Greater" and (bound := node.input_value(1).get_node()).get_type_name() == "Add"
    ]
    if len(offsets) > 1:
        raise LoweringFailed(f"the attention mask compares with {len(offsets)} windows, not with one")
    return -offsets[0] if offsets else 0


def _above(node: Any) -> Iterator[Any]:
    """The node and all that its values are computed from, each once. What only gives a shape is not followed further."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current.get_friendly_name() not in seen:
            seen.add(current.get_friendly_name())
            yield current
            if current.get_type_name() != "ShapeOf":
                waiting += [value.get_node() for value in current.input_values()]


def paged_windows(paged: Any) -> list[int]:
    """The windows that the pass of `paged_form` found in the masks, one for each attention (0 = none)."""
    attentions = [node for node in paged.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    return [_evaluate(node.input_value(10).get_node()) for node in attentions]


def paged_attentions(paged: Any) -> int:
    """How many nodes of the paged form are paged attention once compiled. Raises LoweringFailed where it cannot be compiled."""
    compiled = _compiled(paged, counted=False)
    return sum(_info(node, "layerType") == "PagedAttention" for node in compiled.get_runtime_model().get_ops())


def paged_form(path: Path) -> Any:
    """The IR as the engine's own paged-attention pass leaves it.

    `load` runs this pass, and openvino_genai does on any model that it opens; it drops a window whose mask it doesn't recognise.
    Raises LoweringFailed when the pass does not know the attention itself.
    """
    import openvino
    from openvino._offline_transformations import paged_attention_transformation

    model = openvino.Core().read_model(path)
    try:
        paged_attention_transformation(model)
    except RuntimeError as error:
        raise LoweringFailed(f"the engine's paged-attention pass does not take the model: {one_line(error)}") from error
    return model


def _evaluate(node: Any) -> int:
    """A constant, or a product of constants (the pass negates the mask's offset by a Multiply)."""
    if node.get_type_name() == "Constant":
        return int(np.asarray(node.get_data()).item())
    if node.get_type_name() in ("Multiply", "Convert"):
        return int(np.prod([_evaluate(value.get_node()) for value in node.input_values()]))
    raise LoweringFailed(f"paged attention's window is computed by {node.get_type_name()}, not constant")


def compile_ir(path: Path, *, outputs: Sequence[str] = (), layers: tuple[int, int, int] | None = None) -> Any:
    """The IR on the CPU plugin, in float32; with outputs more than it has, it counts what runs. Raises LoweringFailed.

    layers: (first, stop, all of them) of those to be cut out; what they give is then the first output.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if layers is not None:
        cut_layers(model, *layers)
    known = {name for node in model.get_ops() for value in node.outputs() for name in value.get_names()}
    if missing := [name for name in outputs if name not in known]:
        raise LoweringFailed(f"the model has no tensor {missing[0]}: which experts its router chooses cannot be seen")
    model.add_outputs(list(outputs))
    return _compiled(model, counted=bool(outputs))


def _compiled(model: Any, *, counted: bool) -> Any:
    import openvino

    try:
        return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": counted})
    except RuntimeError as error:
        raise LoweringFailed(f"openvino {openvino.__version__} cannot compile the model: {one_line(error)}") from error


def execution_kinds(compiled: Any) -> dict[str, str]:
    """Name of a node of the IR -> what became of it in the graph that the CPU plugin runs."""
    kinds: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ops():
        kind = _info(node, "layerType")
        if kind == "ScaledDotProductAttention" and not _is_stateful(node):
            kind = "ScaledDotProductAttention without its state"
        kinds |= dict.fromkeys(_info(node, "originalLayersNames").split(","), kind)
    return kinds


def execution_layers(kinds: dict[str, str]) -> dict[str, set[int]]:
    """Part of a layer -> the layers that have it, fused. kinds: see `execution_kinds`."""
    layers: dict[str, set[int]] = {}
    for part, (expected, pattern) in _PARTS.items():
        name = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
        layers[part] = {int(match[1]) for found, kind in kinds.items() if kind == expected and (match := name.fullmatch(found))}
    return layers


def norms_of_ones(path: Path) -> dict[str, set[int]]:
    """Part of a layer -> the layers whose norm there multiplies with nothing but ones.

    The engine leaves that multiplication out, and its fused norm is made of a multiplication only (OpenVINO 2026.4).
    """
    import openvino

    norms = {part: name for part, (kind, name) in _PARTS.items() if kind == "RMS"}
    patterns = {part: re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")) for part, name in norms.items()}
    found: dict[str, set[int]] = {part: set() for part in norms}
    for node in openvino.Core().read_model(path).get_ordered_ops():
        for part, pattern in patterns.items():
            if (match := pattern.fullmatch(node.get_friendly_name())) and _multiplies_with_ones(node):
                found[part].add(int(match[1]))
    return found


def _multiplies_with_ones(node: Any) -> bool:
    factors = [value.get_node() for value in node.input_values()]
    constants = [factor for factor in factors if factor.get_type_name() == "Constant"]
    return node.get_type_name() == "Multiply" and any(bool((constant.get_data() == 1).all()) for constant in constants)


def _is_stateful(node: Any) -> bool:
    """The fused node reads keys and values from the state itself: two of its inputs are MemoryInput nodes."""
    return sum(_info(value.get_node(), "layerType") == "MemoryInput" for value in node.input_values()) == 2


def one_line(error: Exception) -> str:
    """The beginning of what the engine says, without its line ends."""
    return textwrap.shorten(str(error), 500, placeholder=" ...")


def _info(node: Any, key: str) -> str:
    return str(node.get_rt_info()[key].value)
