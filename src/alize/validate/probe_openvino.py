"""What validation asks an OpenVINO artifact besides logits: its stored weights and its residual stream."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alize.optimize.lower_openvino import MODEL_FILE
from alize.optimize.openvino_integers import INTEGER_TYPES, read_integers
from alize.optimize.round_to_integers import Integers

__all__ = ["residual_stream", "stored_weights"]

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """Each weight's name and values, [out,in] as in the checkpoint, read from the file one after another."""
    import openvino

    model = openvino.Core().read_model(folder / MODEL_FILE)
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    for name, node in constants.items():
        if name.endswith(".weight") and node.get_element_type().get_type_name() in INTEGER_TYPES:
            yield name, read_integers(constants, name)
        elif name.endswith(".weight"):
            dtype = _DTYPES[node.get_element_type().get_type_name()]
            bits = np.asarray(node.get_data())  # numpy has no bfloat16: OpenVINO hands its bits out as float16
            yield name, torch.from_numpy(bits.copy()).view(dtype)


def residual_stream(folder: Path, tokens: NDArray[np.int64], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """float32 [S,M] of each named point of the residual stream, after one pass over tokens [S] in accuracy mode."""
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / MODEL_FILE)
    model.add_outputs(names)
    compiled = core.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"})
    size = len(tokens)
    feeds = {
        "input_ids": tokens[None],
        "position_ids": np.arange(size, dtype=np.int64)[None],
        "attention_mask": np.ones((1, size), np.int64),
        "beam_idx": np.zeros(1, np.int32),
    }
    result = compiled.create_infer_request().infer(feeds)
    return {name: np.array(result[name])[0] for name in names}
