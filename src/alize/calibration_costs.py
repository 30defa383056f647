"""What calibrating takes, from shapes alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alize.artifact.manifest import ModelInfo
from alize.calibration_text import SEQUENCE, SEQUENCES

__all__ = ["CALIBRATE", "Calibrating"]

CALIBRATE = "calibrate"
"""Name of the stage."""

_SHARED = (".q_proj.", ".o_proj.", ".gate_proj.", ".down_proj.")  # of matrices that read the same inputs, one


@dataclass(frozen=True)
class Calibrating:
    """memory: anonymous bytes at its peak, but for the process itself.   operations: floating point operations."""

    memory: int
    operations: float

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], info: ModelInfo) -> "Calibrating":
        """shapes: [out,in] of every matrix, each under a name of its own (`single_weights`).

        At the peak two matrices [in,in] are there, or one and the matrices that its inputs come out of.
        """
        tokens = SEQUENCE * SEQUENCES
        layers = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2}
        used = {name: tokens * _share(name, info) for name in layers}
        passes = sum(4 * used[name] * math.prod(shape) for name, shape in layers.items())  # its inputs, then what it answers
        feedback = sum(2 * out * size**2 for out, size in layers.values())
        grams = sum(
            2 * used[name] * size**2 + size**3 / 3 for name, (_, size) in layers.items() if any(part in name for part in _SHARED)
        )
        largest = max(size for _, size in layers.values())
        matrix = max(math.prod(shape) for shape in layers.values())
        streams = 4 * tokens * (4 * info.hidden_size + 2 * info.query_heads * info.head_size)
        return Calibrating(
            int(4 * max(2 * largest**2 + 2 * matrix, largest**2 + 3 * matrix) + streams), passes + feedback + grams
        )


def _share(name: str, info: ModelInfo) -> float:
    return info.experts_per_token / info.experts if ".mlp.experts." in name else 1.0
