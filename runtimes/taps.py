"""What tensors inside a graph held, token by token: validation asks an engine for them, a running one keeps none."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.runner import Runner

__all__ = ["TappedRunner", "Taps", "with_outputs"]


class Taps:
    """Of every name and every row of a batch, what the tensor held for each of the row's tokens, step after step."""

    def __init__(self, names: Sequence[str], batch: int) -> None:
        self.names = tuple(names)
        self._found: list[dict[str, list[NDArray[Any]]]] = [{name: [] for name in self.names} for _ in range(batch)]

    def add(self, values: Sequence[NDArray[Any]], lengths: NDArray[np.int64], *, first: int = 0) -> None:
        """One step of the rows first, first + 1 ...: of each name an array [B,S,n] or [B*S,n]. Of row b the first lengths[b]
        tokens are kept: the rest is padding."""
        for name, value in zip(self.names, values, strict=True):
            rows = value.reshape(len(lengths), -1, value.shape[-1])
            for b, length in enumerate(lengths.tolist()):
                self._found[first + b][name].append(rows[b, :length].copy())

    def row(self, b: int, name: str) -> NDArray[Any]:
        """[tokens of row b,n]"""
        return np.concatenate(self._found[b][name])


class TappedRunner(Runner, Protocol):
    """A runner of an engine that was opened with `taps`."""

    taps: Taps


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """A serialised ONNX model whose graph has more outputs, written without the onnx package, which a runtime need not have.

    Protobuf messages that are laid end to end are merged, lists by appending: what is added is a second ModelProto with nothing
    but graph (field 7), output (field 12 of it) and name (field 1 of that).
    """
    outputs = b"".join(_field(12, _field(1, name.encode())) for name in names)
    return model + _field(7, outputs)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content
