"""Hub ONNX -> a graph for ONNX Runtime's CPU provider: model.onnx and model.onnx.data."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from alize.errors import LoweringFailed, OutputError
from alize.optimize.group_query_attention import group_query_attention
from alize.optimize.onnxruntime_integers import check_integers
from alize.optimize.passes import Pass, drop_functions, run, write
from alize.optimize.quantise import float_part, integer_part
from alize.optimize.rotary_before_split import rotary_before_split
from alize.optimize.store_weights import store_weights
from alize.optimize.transpose_weights import transpose_weights

__all__ = ["MODEL_FILE", "check_structure", "lower", "passes"]

MODEL_FILE = "model.onnx"


def passes(weights: str) -> tuple[Pass, ...]:
    """The lowering, in order."""
    return (
        store_weights(float_part(weights)),
        rotary_before_split,
        transpose_weights,
        *integer_part(weights),
        group_query_attention,
        drop_functions,
    )


def lower(hub: ir.Model, folder: Path, *, weights: str) -> tuple[str, ...]:
    """Rewrites `hub` in place and streams it to FOLDER. Returns the names of the passes. Raises LoweringFailed."""
    done = run(hub, passes(weights))
    write(hub, folder / MODEL_FILE)
    return tuple(done)


def check_structure(folder: Path, windows: Sequence[int], *, weights: str = "fp32") -> dict[str, Any]:
    """Asserts on the executed graph that every layer's attention ran as one fused node with the layer's own window, and
    where `weights` are integers, that every product ran on the integers themselves.

    windows: of each layer, 0 = full attention. Runs two tokens with the engine's profiler on. Returns what the manifest's
    `structure` holds. Raises LoweringFailed naming the layer that missed.
    """
    graph = ir.load(folder / MODEL_FILE).graph
    attributes = {node.name: node for node in graph if node.op_type == "GroupQueryAttention"}
    executed = _executed_nodes(folder)
    for layer, window in enumerate(windows):
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
        "windows": list(windows),
        **(check_integers(graph, executed, windows) if integer_part(weights) else {}),
    }


def _executed_nodes(folder: Path) -> dict[str, str]:
    """Name -> operator of every node that the engine ran for two tokens after one cached token."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="alize-profile-") as scratch:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(folder / MODEL_FILE, settings, providers=["CPUExecutionProvider"])
        feeds: dict[str, Any] = {
            "input_ids": np.zeros((1, 2), np.int64),
            "position_ids": np.array([[1, 2]], np.int64),
            "attention_mask": np.ones((1, 3), np.int64),
        }
        for value in session.get_inputs():
            if value.name not in feeds:
                feeds[value.name] = np.zeros((1, value.shape[1], 1, value.shape[3]), np.float32)
        session.run(["logits"], feeds)
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except ValueError as error:  # the engine does not say that it could not write
            raise OutputError(f"{scratch} has no room for the engine's profile: free space there, or set TMPDIR") from error
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return {event["name"].removesuffix("_kernel_time"): event["args"]["op_name"] for event in kernels}
