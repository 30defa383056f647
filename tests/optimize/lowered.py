"""Artifacts of tiny models on their engines, without any runtime of ours in between."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from alize.export.hub import export_hub
from alize.optimize import lower_onnxruntime, lower_openvino
from tests.export.hubs import Array, Feeds, Tiny, onnx_logits, onnx_session

LOWERINGS = {"onnxruntime": lower_onnxruntime, "openvino": lower_openvino}
ACCURACY = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def lower(tiny: Tiny, target: str, folder: Path, *, weights: str = "fp32", experts: str = "") -> tuple[str, ...]:
    """Exports and lowers into FOLDER, which is made. experts: the form asked for."""
    folder.mkdir(parents=True)
    options = {"experts": experts} if experts else {}
    passes: tuple[str, ...] = LOWERINGS[target].lower(export_hub(tiny.checkpoint), folder, weights=weights, options=options)
    return passes


def onnxruntime_session(folder: Path) -> onnxruntime.InferenceSession:
    return onnx_session(folder / "model.onnx")


def onnxruntime_logits(folder: Path, tiny: Tiny, steps: Sequence[Feeds]) -> Array:
    """The engine takes a batch of several new tokens only where nothing is cached yet."""
    return onnx_logits(onnxruntime_session(folder), steps, tiny.no_past(len(steps[0]["input_ids"])))


def openvino_request(folder: Path) -> Any:
    import openvino

    return openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", ACCURACY).create_infer_request()


def openvino_logits(folder: Path, steps: Sequence[Feeds]) -> Array:
    """One request; its state carries the cache from step to step."""
    request = openvino_request(folder)
    beam_idx = np.arange(len(steps[0]["input_ids"]), dtype=np.int32)
    return np.concatenate([np.array(request.infer({**step, "beam_idx": beam_idx})["logits"]) for step in steps], axis=1)


def logits(target: str, folder: Path, tiny: Tiny, steps: Sequence[Feeds]) -> Array:
    return onnxruntime_logits(folder, tiny, steps) if target == "onnxruntime" else openvino_logits(folder, steps)
