"""Hub ONNX -> TensorRT: graph.onnx, which is proven on the CPU, and an engine of it for each SM. See docs/nvidia.md.

The graph's weights (graph.onnx.data) are there until the artifact is sealed: the plans hold them too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed
from alize.nvidia import PACKAGES, Limits, Package, engine_limits, plan_name
from alize.optimize.expert_forms import NO_OPTIONS, expert_form, expert_pass
from alize.optimize.experts_gathered import experts_gathered
from alize.optimize.half_precision import half_precision
from alize.optimize.openvino_slices import Slices
from alize.optimize.passes import Pass, attentions, drop_functions, run, write
from alize.optimize.pick_logits import pick_logits
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.rounded import Rounded
from alize.optimize.signs_behind_products import signs_behind_products
from alize.optimize.static_cache import static_cache
from alize.optimize.store_weights import store_weights
from alize.optimize.tables_dequantised import tables_dequantised
from alize.optimize.tensorrt_build import Profile, build_plan
from alize.optimize.tensorrt_lint import lint
from alize.optimize.tensorrt_plan import check_attention, check_weights, count_kernels, read_kernels
from alize.optimize.transpose_weights import transpose_weights

__all__ = ["GRAPH_FILE", "PACKAGE", "check_structure", "lower", "passes"]

GRAPH_FILE = "graph.onnx"
PACKAGE = PACKAGES["tensorrt"]


def passes(weights: str, limits: Limits, experts: str = "", rounded: Rounded | None = None) -> tuple[Pass, ...]:
    """The lowering, in order. experts: the form of a mixture of experts, "" where the model has none."""
    return (
        *expert_pass(experts, {"gathered": experts_gathered}),
        store_weights(float_part(weights)),
        transpose_weights,
        *integer_part(weights, rounded),
        *((tables_dequantised, signs_behind_products) if integer_part(weights) else ()),
        static_cache(limits.capacity, limits.window_capacity),
        pick_logits,
        half_precision("bf16" if weights == "bf16" else "fp16"),
        drop_functions,
    )


def lower(
    hub: ir.Model,
    folder: Path,
    *,
    weights: str,
    options: Mapping[str, str] = NO_OPTIONS,
    rounded: Rounded | None = None,
    package: Package = PACKAGE,
) -> tuple[str, ...]:
    """Rewrites `hub` in place, streams it to FOLDER, and builds a plan for each SM. Returns the names of the passes.

    options: `sm` (80,89), `capacity`, `batch` and, of a mixture of experts, `experts`. Raises LoweringFailed, BackendUnavailable.
    """
    limits = engine_limits([node.attributes["window"].as_int() for node in attentions(hub)], int(options.get("capacity", 0)))
    done = run(hub, passes(weights, limits, expert_form(hub, options), rounded))
    lint(hub)
    graph = folder / GRAPH_FILE
    write(hub, graph)
    for sm in _sms(options):
        build_plan(package, graph, folder / plan_name(sm), sm, profiles(limits, int(options["batch"])))
    return (*done, f"build_{package.target.replace('-', '_')}")


def profiles(limits: Limits, batch: int) -> tuple[Profile, Profile]:
    """Decoding, whose attention is then a kernel of its own that reads grouped heads as they lie; and everything else."""
    return Profile(batch, 1, (1, 1)), Profile(batch, limits.chunk, (1, limits.chunk))


def check_structure(
    folder: Path,
    info: ModelInfo,
    options: Mapping[str, str],
    *,
    weights: str = "fp16",  # noqa: ARG001  plans are judged by their size
    slices: Slices | None = None,
) -> dict[str, Any]:
    """Asserts on every plan: each layer's attention is one fused kernel in each profile, and weights lie as they are stored.

    Returns what the manifest's `structure` holds. Raises LoweringFailed naming plan and layer.
    """
    if slices is not None:
        raise LoweringFailed("the lowered graph does not fit in memory to be proven, and is not cut: build on a larger machine")
    data = (folder / f"{GRAPH_FILE}.data").stat().st_size + _unpacked_table(folder)
    counts = {}
    for sm in _sms(options):
        plan = folder / plan_name(sm)
        kernels = read_kernels(plan)
        check_attention(kernels, info.layers)
        check_weights(plan, data)
        counts[str(sm)] = count_kernels(kernels)
    return {
        "attention": "fused multi-head attention, decoding and prefill",
        "windows": list(info.windows),
        "plans": counts,
        **(
            {"experts": {"form": "gathered", "decode": "the chosen experts", "prefill": "dense: all experts"}}
            if info.experts
            else {}
        ),
    }


def _unpacked_table(folder: Path) -> int:
    """Bytes of a table of integers in float16: rows are looked up in it so, and TensorRT unpacks it when it builds."""
    table = ir.load(folder / GRAPH_FILE).graph.initializers.get("model.embed_tokens.weight")
    if table is None or table.dtype != ir.DataType.INT8 or table.shape is None:
        return 0
    rows, columns = table.shape.numpy()
    return 2 * int(rows) * int(columns)


def _sms(options: Mapping[str, str]) -> list[int]:
    return [int(sm) for sm in options["sm"].split(",")]
