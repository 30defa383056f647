"""What validation asks an ONNX Runtime artifact besides logits: its stored weights and its residual stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from alize.optimize.lower_onnxruntime import MODEL_FILE
from alize.optimize.onnxruntime_integers import INTEGER_TYPES, read_integers
from alize.optimize.round_to_integers import Integers
from alize.optimize.transpose_weights import SUFFIX

__all__ = ["residual_stream", "stored_weights"]

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor | Integers]]:
    """Each weight's name and values, [out,in] as in the checkpoint, mapped from the file."""
    model = ir.load(folder / MODEL_FILE)
    for stored, value in model.graph.initializers.items():
        name = stored.removesuffix(SUFFIX)
        tensor = value.const_value
        if tensor is not None and name.endswith(".weight") and tensor.dtype in INTEGER_TYPES:
            yield name, read_integers(model.graph.initializers, stored)
        elif tensor is not None and name.endswith(".weight"):
            dtype = _DTYPES[tensor.dtype]
            words = torch.frombuffer(bytearray(tensor.tobytes()), dtype=dtype)
            values = words.reshape(value.shape.numpy()) if value.shape is not None else words
            yield name, values.T if stored.endswith(SUFFIX) else values


def residual_stream(folder: Path, tokens: NDArray[np.int64], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """float32 [S,M] of each named point of the residual stream, after one pass over tokens [S]."""
    import onnxruntime

    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    size = len(tokens)
    feeds: dict[str, Any] = {
        "input_ids": tokens[None],
        "position_ids": np.arange(size, dtype=np.int64)[None],
        "attention_mask": np.ones((1, size), np.int64),
    }
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return {name: found[0] for name, found in zip(names, session.run(names, feeds), strict=True)}
