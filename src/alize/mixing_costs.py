"""What choosing a mix of int4 and int8 takes, from shapes alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alize.artifact.manifest import ModelInfo

__all__ = ["HEAD_POSITIONS", "PROBES", "SEQUENCE", "SEQUENCES", "WEIGH", "Weighing"]

WEIGH = "weigh the matrices"
"""Name of the stage."""

SEQUENCE = 256  # tokens of the text that are read together
SEQUENCES = 4
PROBES = 4
"""Random directions of the logits for each sequence."""
HEAD_POSITIONS = 64  # whose logits are there together


@dataclass(frozen=True)
class Weighing:
    """memory: anonymous bytes at its peak, but for the process itself.   operations: floating point operations.   rounded:
    weights that are rounded, each to int4 and to int8."""

    memory: int
    operations: float
    rounded: int

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], info: ModelInfo, inner: int) -> "Weighing":
        """shapes: of every weight, each under a name of its own (`single_weights`).   inner: I, the width of an MLP."""
        tokens = SEQUENCE * SEQUENCES
        matrices = {name: shape for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2}
        layers = [0] * info.layers
        for name, shape in matrices.items():
            layers[int(name.split(".")[2])] += math.prod(shape)
        share = info.experts_per_token / info.experts if info.experts else 1.0
        active = sum(math.prod(shape) * (share if ".mlp.experts." in name else 1.0) for name, shape in matrices.items())
        largest = max(math.prod(shape) for shape in matrices.values())
        stream = tokens * info.hidden_size
        chosen = max(info.experts_per_token, 1)
        kept = tokens * (8 * chosen * inner + 12 * info.hidden_size + 6 * info.query_heads * info.head_size)
        scores = 6 * tokens * SEQUENCE * info.query_heads
        head = (2 * PROBES + 4) * HEAD_POSITIONS * info.vocab_size + 2 * 16384 * info.hidden_size
        return Weighing(
            memory=4 * max(max(layers) + 3 * largest + kept + scores + (PROBES + 2) * stream, head + (PROBES + 2) * stream),
            operations=2 * tokens * (active * (3 + PROBES) + (1 + PROBES) * info.vocab_size * info.hidden_size),
            rounded=2 * sum(math.prod(shape) for shape in matrices.values()),
        )
