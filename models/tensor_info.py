"""Where a checkpoint's tensors lie, and how a matrix that is stored packed becomes floats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Packed", "Rows", "TensorInfo", "View"]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `size` bytes of `file` from byte `start`, row-major, little-endian; dtype as safetensors names it.

    Of a weight that is dequantised when it is read, shape and dtype are those of its floats, file and start those of the packed
    numbers, and size counts all that it is made of.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    size: int


View = Callable[[TensorInfo], Tensor]
"""A stored tensor as it is, mapped."""

Rows = Callable[[int, int], Tensor]
"""rows(start, stop) -> rows start..stop of a matrix [out,in], float32. start and stop are multiples of ALIGNMENT, or the end."""

ALIGNMENT = 8  # rows that some formats pack into one word
BLOCK = 1 << 18  # elements dequantised together: what a core's cache holds of the temporaries


@dataclass(frozen=True)
class Packed:
    """A matrix [out,in] that is stored quantised.

    info: what it looks like to everybody else. parts: the stored tensors it is made of, by what the format calls them.
    unpack: the format's arithmetic; given the mapped parts it checks their contents and returns the rows.
    """

    info: TensorInfo
    dtype: torch.dtype
    parts: Mapping[str, TensorInfo]
    unpack: Callable[[Mapping[str, Tensor]], Rows]

    def read(self, view: View) -> Tensor:
        """The matrix in memory of its own, in `dtype`; besides it only a block of rows is in memory."""
        rows = self.unpack({part: view(info) for part, info in self.parts.items()})
        matrix = torch.empty(self.info.shape, dtype=self.dtype)
        step = max(1, BLOCK // max(1, self.info.shape[1]) // ALIGNMENT) * ALIGNMENT
        for start in range(0, self.info.shape[0], step):
            stop = min(start + step, self.info.shape[0])
            matrix[start:stop] = rows(start, stop)
        return matrix
