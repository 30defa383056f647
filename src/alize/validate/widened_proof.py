"""Runs a graph that computes in float16 on a GPU in float32 on this machine's CPU: the same nodes, the same stored weights.

What is left to differ from the reference is the graph itself. Through ONNX Runtime's CPU provider, driven as on the GPU: rows
one by one where there is more than one token, windows moved in linear caches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from alize.artifact.manifest import Manifest
from alize.optimize.widen import read_widened
from alize.runtimes.onnxruntime_runner import MODEL_FILE, OnnxRuntimeEngine, available, devices
from alize.validate.graph_proof import open_graph

__all__ = ["available", "devices", "fingerprint", "open"]


def fingerprint(device: str) -> dict[str, str]:
    """Of the proof, which decides no verdict of a device."""
    return {"backend": "widened proof", "device": device}


def open(  # noqa: A001 - the name that every back-end module has
    folder: Path,
    manifest: Manifest,
    device: str,  # noqa: ARG001 - there is one
    options: Mapping[str, str | int | bool],
    taps: Sequence[str] = (),
) -> OnnxRuntimeEngine:
    """The graph in FOLDER. Raises LoweringFailed."""
    model = read_widened(folder / MODEL_FILE)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    return OnnxRuntimeEngine(open_graph(model, folder, options), manifest.model, taps)
