"""Hub ONNX -> a graph for ONNX Runtime's CPU provider: model.onnx and model.onnx.data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed
from alize.optimize.expert_forms import NO_OPTIONS, expert_form, expert_pass, form_of
from alize.optimize.expert_structure import check_phases
from alize.optimize.experts_apart import experts_apart
from alize.optimize.group_query_attention import group_query_attention
from alize.optimize.onnxruntime_integers import check_integers
from alize.optimize.onnxruntime_profile import Run, executed_kinds, expert_phases, profile_slices, reachable_experts
from alize.optimize.openvino_slices import Slices
from alize.optimize.passes import Pass, drop_functions, run, write
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.rotary_before_split import rotary_before_split
from alize.optimize.rounded import Rounded
from alize.optimize.store_weights import store_weights
from alize.optimize.transpose_weights import transpose_weights

__all__ = ["MODEL_FILE", "check_structure", "lower", "passes"]

MODEL_FILE = "model.onnx"


def passes(weights: str, experts: str = "", rounded: Rounded | None = None) -> tuple[Pass, ...]:
    """The lowering, in order. experts: the form of a mixture of experts, "" where the model has none. rounded: see `quantise`."""
    return (
        *expert_pass(experts, {"apart": experts_apart}),
        store_weights(float_part(weights)),
        rotary_before_split,
        transpose_weights,
        *integer_part(weights, rounded),
        group_query_attention,
        drop_functions,
    )


def lower(
    hub: ir.Model,
    folder: Path,
    *,
    weights: str,
    options: Mapping[str, str] = NO_OPTIONS,
    rounded: Rounded | None = None,
) -> tuple[str, ...]:
    """Rewrites `hub` in place and streams it to FOLDER. Returns the names of the passes. Raises LoweringFailed.

    options: `experts`, the form of a mixture of experts.   rounded: the integers, where they were made already.
    """
    done = run(hub, passes(weights, expert_form(hub, options), rounded))
    write(hub, folder / MODEL_FILE)
    return tuple(done)


def check_structure(
    folder: Path,
    info: ModelInfo,
    options: Mapping[str, str],
    *,
    weights: str = "fp32",
    slices: Slices | None = None,
) -> dict[str, Any]:
    """Asserts on the executed graph that every layer's attention ran as one fused node with the layer's own window, that
    neither a prefill nor a decode step ran an expert which the router did not choose, and where `weights` are integers, that
    every product ran on the integers themselves.

    options: those of `lower`. slices: run these layers at a time, where all of them unpacked would not fit in memory. Runs both
    with the engine's profiler on. Returns what the manifest's `structure` holds. Raises
    LoweringFailed naming the layer that missed.
    """
    path = folder / MODEL_FILE
    graph = ir.load(path).graph
    attributes = {node.name: node for node in graph if node.op_type == "GroupQueryAttention"}
    runs = profile_slices(path, info, slices or ((0, info.layers),))
    executed = executed_kinds(runs)
    for layer, window in enumerate(info.windows):
        name = f"layers.{layer}.self_attn"
        if name not in attributes or executed.get(name) != "GroupQueryAttention":
            found = executed.get(name, "nothing of that name")
            raise LoweringFailed(f"layer {layer}: attention did not run as GroupQueryAttention but as {found}")
        local = attributes[name].attributes["local_window_size"].as_int()
        if local != (window or -1):
            raise LoweringFailed(
                f"layer {layer}: GroupQueryAttention has local_window_size {local}, the model's is {window or -1}"
            )
    return {
        "attention": "GroupQueryAttention",
        "fused_attention_nodes": sum(kind == "GroupQueryAttention" for kind in executed.values()),
        "rotary_nodes": sum(kind == "RotaryEmbedding" for kind in executed.values()),
        "norm_nodes": sum(kind == "RMSNormalization" for kind in executed.values()),
        "windows": list(info.windows),
        **({"experts": _check_experts(runs, info, options)} if info.experts else {}),
        **(check_integers(graph, executed, info) if integer_part(weights) else {}),
        **({"compiled_in_slices": [[first, stop - 1] for first, stop in slices]} if slices else {}),
    }


def _check_experts(runs: list[Run], info: ModelInfo, options: Mapping[str, str]) -> dict[str, Any]:
    counts = check_phases(expert_phases(runs, info.layers), reachable_experts(runs, info.layers), info)
    return {"form": form_of(options, experts=True)} | counts
