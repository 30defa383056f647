"""Hub ONNX -> stateful OpenVINO IR for the CPU plugin: openvino_model.xml and .bin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed
from alize.optimize.expert_forms import NO_OPTIONS, expert_form, expert_pass, form_of
from alize.optimize.expert_structure import Phase, check_phases
from alize.optimize.experts_apart import experts_apart
from alize.optimize.experts_tiled import experts_tiled, tiled_conversion
from alize.optimize.keep_all_logits import keep_all_logits
from alize.optimize.openvino_attention import attention_conversion
from alize.optimize.openvino_experts import Streams, check_tiled, expert_outputs, joined, reachable_experts, run_phases
from alize.optimize.openvino_integers import check_integers
from alize.optimize.openvino_slices import Slices
from alize.optimize.openvino_stateful import make_stateful
from alize.optimize.openvino_structure import (
    compile_ir,
    execution_kinds,
    execution_layers,
    mask_windows,
    norms_of_ones,
    one_line,
    paged_attentions,
    paged_form,
    paged_windows,
)
from alize.optimize.openvino_ties import lower_index_first
from alize.optimize.openvino_write import write_ir
from alize.optimize.passes import Pass, attentions, drop_functions, run, write_around
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.rounded import Rounded
from alize.optimize.store_weights import store_weights

__all__ = ["MODEL_FILE", "check_structure", "lower", "passes"]

MODEL_FILE = "openvino_model.xml"
_SCRATCH = "lowering.onnx"
_EXPERTS: dict[str, Pass] = {"apart": experts_apart, "tiled": experts_tiled}


def passes(weights: str, experts: str = "", rounded: Rounded | None = None) -> tuple[Pass, ...]:
    """The part of the lowering that rewrites ONNX; the conversion of attention and `make_stateful` follow on the IR.

    experts: the form of a mixture of experts, "" where the model has none.   rounded: see `quantise`.
    """
    return (
        *expert_pass(experts, _EXPERTS),
        store_weights(float_part(weights)),
        *integer_part(weights, rounded),
        keep_all_logits,
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
    The weights go through a scratch ONNX file that OpenVINO maps and copies out of: never through memory as a whole. Integers
    that were made already are mapped where they lie.
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    windows = [node.attributes["window"].as_int() for node in attentions(hub)]
    experts = expert_form(hub, options)
    done = run(hub, passes(weights, experts, rounded))
    scratch = (folder if rounded is None else rounded.pieces.folder) / _SCRATCH
    write_around(hub, scratch)
    core = openvino.Core()
    core.add_extension(ConversionExtension("SlidingWindowAttention", "ai.alize", attention_conversion(windows)))
    core.add_extension(ConversionExtension("SparseMoE", "ai.alize", tiled_conversion()))
    try:
        model = core.read_model(scratch)
    except RuntimeError as error:
        raise LoweringFailed(f"openvino {openvino.__version__} cannot convert the graph: {one_line(error)}") from error
    make_stateful(model)
    if experts:
        lower_index_first(model)
    write_ir(model, folder / MODEL_FILE, save=openvino.serialize)
    del model, core
    for leftover in (scratch, scratch.with_name(f"{_SCRATCH}.data")):
        leftover.unlink()
    return (*done, "openvino_attention", "make_stateful", *(["lower_index_first"] if experts else []))


def check_structure(
    folder: Path,
    info: ModelInfo,
    options: Mapping[str, str],
    *,
    weights: str = "fp32",
    slices: Slices | None = None,
) -> dict[str, Any]:
    """Asserts on the compiled graph: one stateful attention node a layer, fused RoPE and RMS nodes, the window in the mask,
    that neither a prefill nor a decode step runs an expert which the router did not choose; and where `weights` are integers,
    products with the integers themselves.

    options: those of `lower`. slices: compile these layers at a time, where all of them unpacked would not fit in memory. Returns
    what the manifest's `structure` holds. Raises LoweringFailed naming the layer that missed.
    """
    path, windows = folder / MODEL_FILE, info.windows
    found = mask_windows(path)
    for layer, window in enumerate(windows):
        if found.get(layer) != window:
            raise LoweringFailed(f"layer {layer}: the mask's window is {found.get(layer)}, the model's is {window}")
    form = form_of(options, experts=bool(info.experts))
    kinds, phases = _look(path, info, slices or ((0, info.layers),), counted=form == "apart")
    nodes, ones = execution_layers(kinds), norms_of_ones(path)
    for layer in range(len(windows)):
        missing = [part for part, layers in nodes.items() if layer not in layers and layer not in ones.get(part, ())]
        if missing:
            raise LoweringFailed(f"layer {layer}: no fused {' and no fused '.join(missing)} in the compiled graph")
    paged = paged_form(path)
    found_windows = paged_windows(paged)
    if found_windows != list(windows):  # the engine's order of computation is that of the layers
        raise LoweringFailed(f"paged attention would run with the windows {found_windows}, the model's are {list(windows)}")
    fused = None if slices else paged_attentions(paged)
    if fused not in (None, info.layers):
        raise LoweringFailed(f"{fused} of {info.layers} layers have a fused attention in the compiled paged form")
    return {
        "attention": "ScaledDotProductAttention with state",
        "fused_attention_nodes": len(nodes["stateful attention"]),
        "rotary_nodes": len(nodes["RoPE of the query"]) + len(nodes["RoPE of the key"]),
        "norm_nodes": len(nodes["RMS before attention"]) + len(nodes["RMS before the MLP"]),
        **({"norms_of_ones": unscaled} if (unscaled := sum(map(len, ones.values()))) else {}),
        "paged_attention_windows": sorted(set(found_windows)),
        **({} if slices else {"paged_attention_nodes": fused}),
        "windows": list(windows),
        **({"experts": _check_experts(phases, kinds, info, form)} if form else {}),
        **({"compiled_in_slices": [[first, stop - 1] for first, stop in slices]} if slices else {}),
        **(check_integers(path, info, slices=slices) if integer_part(weights) else {}),
    }


def _look(path: Path, info: ModelInfo, slices: Slices, *, counted: bool) -> tuple[dict[str, str], list[Phase]]:
    """What became of each node of the IR, and with `counted` what ran in a prefill and a decode step: slice after slice."""
    kinds: dict[str, str] = {}
    phases: list[Phase] = []
    streams: Streams = {}
    for first, stop in slices:
        outputs = expert_outputs(info)[first:stop]
        compiled = compile_ir(path, outputs=outputs, layers=None if len(slices) == 1 else (first, stop, info.layers))
        kinds |= execution_kinds(compiled)
        if counted:
            phases = joined(phases, run_phases(compiled, info, first=first, stop=stop, streams=streams))
        del compiled  # before the next slice is compiled
    return kinds, phases


def _check_experts(phases: list[Phase], kinds: dict[str, str], info: ModelInfo, form: str) -> dict[str, Any]:
    if form == "tiled":
        return {"form": form} | check_tiled(kinds, info)
    return {"form": form} | check_phases(phases, reachable_experts(kinds, info.layers), info)
