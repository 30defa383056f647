"""Hub ONNX -> stateful OpenVINO IR for the CPU plugin: openvino_model.xml and .bin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from alize.errors import LoweringFailed
from alize.optimize.keep_all_logits import keep_all_logits
from alize.optimize.openvino_attention import attention_conversion
from alize.optimize.openvino_integers import check_integers
from alize.optimize.openvino_stateful import make_stateful
from alize.optimize.openvino_structure import execution_layers, mask_windows, one_line, paged_windows
from alize.optimize.openvino_write import write_ir
from alize.optimize.passes import Pass, drop_functions, run, write
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.store_weights import store_weights

__all__ = ["MODEL_FILE", "check_structure", "lower", "passes"]

MODEL_FILE = "openvino_model.xml"
_SCRATCH = "lowering.onnx"


def passes(weights: str) -> tuple[Pass, ...]:
    """The part of the lowering that rewrites ONNX; the conversion of attention and `make_stateful` follow on the IR."""
    return (
        store_weights(float_part(weights)),
        *integer_part(weights),
        keep_all_logits,
        drop_functions,
    )


def lower(hub: ir.Model, folder: Path, *, weights: str) -> tuple[str, ...]:
    """Rewrites `hub` in place and streams it to FOLDER. Returns the names of the passes. Raises LoweringFailed.

    The weights go through a scratch ONNX file that OpenVINO maps and copies out of: never through memory as a whole.
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    done = run(hub, passes(weights))
    scratch = folder / _SCRATCH
    write(hub, scratch)
    core = openvino.Core()
    core.add_extension(ConversionExtension("SlidingWindowAttention", "ai.alize", attention_conversion()))
    try:
        model = core.read_model(scratch)
    except RuntimeError as error:
        raise LoweringFailed(f"openvino {openvino.__version__} cannot convert the graph: {one_line(error)}") from error
    make_stateful(model)
    write_ir(model, folder / MODEL_FILE, save=openvino.serialize)
    del model, core
    for leftover in (scratch, scratch.with_name(f"{_SCRATCH}.data")):
        leftover.unlink()
    return (*done, "openvino_attention", "make_stateful")


def check_structure(folder: Path, windows: Sequence[int], *, weights: str = "fp32") -> dict[str, Any]:
    """Asserts on the compiled graph: one stateful attention node a layer, fused RoPE and RMS nodes, the window in the mask;
    and where `weights` are integers, products with the integers themselves.

    windows: of each layer, 0 = full attention. Returns what the manifest's `structure` holds. Raises LoweringFailed naming
    the layer that missed.
    """
    path = folder / MODEL_FILE
    found = mask_windows(path)
    for layer, window in enumerate(windows):
        if found.get(layer) != window:
            raise LoweringFailed(f"layer {layer}: the mask's window is {found.get(layer)}, the model's is {window}")
    nodes = execution_layers(path)
    for layer in range(len(windows)):
        missing = [part for part, layers in nodes.items() if layer not in layers]
        if missing:
            raise LoweringFailed(f"layer {layer}: no fused {' and no fused '.join(missing)} in the compiled graph")
    paged = paged_windows(path)
    if sorted(paged) != sorted(windows):
        raise LoweringFailed(f"paged attention would run with the windows {paged}, the model's are {list(windows)}")
    return {
        "attention": "ScaledDotProductAttention with state",
        "fused_attention_nodes": len(nodes["stateful attention"]),
        "rotary_nodes": len(nodes["RoPE of the query"]) + len(nodes["RoPE of the key"]),
        "norm_nodes": len(nodes["RMS before attention"]) + len(nodes["RMS before the MLP"]),
        "paged_attention_windows": sorted(set(paged)),
        "windows": list(windows),
        **(check_integers(path, windows) if integer_part(weights) else {}),
    }
