"""What this machine does now, in a second or two of trying: the speeds that durations of a build's stages are told from."""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alize.costs import Model
from alize.optimize.quantisation import Quantisation

__all__ = ["Speed"]


@dataclass(frozen=True)
class Speed:
    """Units a second, measured now: other work on the machine slows a build as well.

    hashed: bytes by one thread.   copied: bytes from place to place in memory, caches helping.   filled: bytes of memory that
    the system hands out for it.   multiplied: floating point operations of float32 matrix products.   streamed: bytes of a
    matrix, larger than caches are, that is multiplied with one vector.   interpreted: steps of a Python loop.   rounded: weights
    to the model's integers.   unpacked: weights of integers that the target's exact products go through for a token, infinite
    where reading them is all.   written: bytes to the output's disk.
    """

    hashed: float
    copied: float
    filled: float
    multiplied: float
    streamed: float
    interpreted: float
    rounded: float
    unpacked: float
    written: float

    @staticmethod
    def here(folder: Path, model: Model) -> "Speed":
        """Measured now, or less than a minute ago by this process. folder: on the disk that is written to; where nothing can be
        written, the disk is taken to be as fast as memory."""
        key = folder.stat().st_dev, model.target, model.weights, model.info.hidden_size
        if key not in _MEASURED or time.monotonic() - _MEASURED[key][0] > _MINUTE:
            _MEASURED[key] = (time.monotonic(), Speed._measured(folder, model))
        return _MEASURED[key][1]

    @staticmethod
    def _measured(folder: Path, model: Model) -> "Speed":
        import torch

        data = bytes(1 << 22)
        source, place, large = torch.ones(1 << 22), torch.empty(1 << 22), torch.ones(1 << 24)
        left, right = torch.ones(256, 2048), torch.ones(2048, 2048)
        copied = _rate(4 << 22, lambda: place.copy_(source))
        return Speed(
            hashed=_rate(len(data), lambda: hashlib.sha256(data).digest()),
            copied=copied,
            filled=_rate(4 << 24, large.clone),
            multiplied=_rate(2 * 256 * 2048 * 2048, lambda: left @ right),
            streamed=_streamed(),
            interpreted=_rate(200_000, _loop),
            rounded=_rounded(model),
            unpacked=_unpacked(model),
            written=_written(folder) or copied,
        )


_MINUTE = 60.0
_MEASURED: dict[tuple[int, str, str, int], tuple[float, Speed]] = {}


def _streamed(rows: int = 1 << 15, columns: int = 1 << 11) -> float:
    """Of 256 MB in float32: no cache that one has to oneself holds them."""
    import torch

    matrix, vector = torch.ones(rows, columns), torch.ones(columns)
    return _rate(4 * rows * columns, lambda: matrix @ vector)


def _rounded(model: Model) -> float:
    """Weights a second of rounding some rows as long as the model's; 1 where it is stored in floats."""
    import torch

    from alize.optimize.round_to_integers import quantised

    chosen = Quantisation.parse(model.weights)
    form = None if chosen is None else chosen.form("calibration", (1, model.info.hidden_size))
    if form is None:
        return 1.0
    rows = torch.linspace(-1, 1, (1 << 19) // model.info.hidden_size * model.info.hidden_size).reshape(-1, model.info.hidden_size)
    return _rate(rows.numel(), lambda: quantised("calibration", rows, form), least=0.5)  # most of a build's time


def _unpacked(model: Model, size: int = 1 << 11) -> float:
    """Of ONNX Runtime, whose products in float32 unpack integers for every token; infinite where nothing is unpacked.

    One matrix [size,size] in blocks of 32, which is what rows with a single scale become as well.
    """
    chosen = Quantisation.parse(model.weights)
    if chosen is None or model.target != "onnxruntime":
        return math.inf
    import numpy as np
    import onnxruntime

    graph = _product_with_integers(size, chosen.bits)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((1, size), np.float32)}
    return _rate(size * size, lambda: session.run(None, feed), least=0.5)  # PyTorch's threads still spin at first


def _product_with_integers(size: int, bits: int) -> bytes:
    """An ONNX model x [1,size] -> y [1,size], exact: `accuracy_level` 1."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    blocks = size // 32
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=size, N=size, bits=bits, block_size=32, accuracy_level=1
    )
    tensors = [
        numpy_helper.from_array(np.ones((size, blocks, 4 * bits), np.uint8), "b"),
        numpy_helper.from_array(np.ones((size, blocks), np.float32), "s"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in "xy")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: Any = helper.make_model(helper.make_graph([node], "product", [x], [y], tensors), opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _loop() -> int:
    total = 0
    for number in range(200_000):
        total += number * number
    return total


def _written(folder: Path, size: int = 1 << 24) -> float | None:
    """Bytes a second that reach the disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            block = os.urandom(size)

            def write() -> None:
                file.seek(0)
                file.write(block)
                file.flush()
                os.fsync(file.fileno())

            return _rate(size, write)
    except OSError:
        return None


def _rate(amount: float, work: Callable[[], object], least: float = 0.2) -> float:
    """Over `least` seconds, not for the best moment of them: a build meets the machine's other work as well."""
    rounds, spent, began = 0, 0.0, time.perf_counter()
    while spent < least:
        work()
        rounds, spent = rounds + 1, time.perf_counter() - began
    return rounds * amount / spent
