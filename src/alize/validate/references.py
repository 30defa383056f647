"""The reference runs of one validation, all over the same tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.progress import Progress
from alize.validate.measure import Figures, measure
from alize.validate.stored import as_stored

__all__ = ["MAX_KEPT", "References", "kept_positions", "run_references", "stored_exactly"]

MAX_KEPT = 640
"""Positions whose logits are kept: all of a short sequence; of a longer one the edges and an even sample."""

_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class References:
    """kept: int64 [n], ascending positions.   logits: float32 [n,V], of the artifact's own (stored) weights.

    floor: the same in another summation order.   floor_bf16: computed in bfloat16.   quantisation: stored weights against the
    checkpoint's; None when they are the checkpoint's, bit for bit.
    """

    kept: NDArray[np.int64]
    logits: NDArray[np.float32]
    floor: Figures
    floor_bf16: Figures | None
    quantisation: Figures | None

    def logits_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.logits[np.searchsorted(self.kept, positions)]

    def log_probs(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [n,V], each row's log-softmax."""
        return torch.from_numpy(self.logits_at(positions)).double().log_softmax(-1).float().numpy()


def run_references(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], *, weights: str, bf16: bool, progress: Progress
) -> References:
    """tokens: int64 [N]. weights: what the artifact stores (fp32, bf16, int4-g128, ...)."""
    kept, rule = kept_positions(len(tokens)), as_stored(weights)

    def run(name: str, reference: Reference) -> NDArray[np.float32]:
        progress.stage(name, steps=reference.config.num_layers)
        done = reference.run([tokens], positions=[kept], progress=lambda _, count, __: progress.advance(1 if count else 0))
        return done.logits[0]

    logits = run("reference", Reference(checkpoint, weights=rule))
    other = run("reference, summed otherwise", Reference(checkpoint, weights=rule, summation="split"))
    floor = measure(logits, other, kept)
    floor_bf16 = quantisation = None
    if bf16:
        rounded = run("reference in bfloat16", Reference(checkpoint, weights=rule, compute=torch.bfloat16))
        floor_bf16 = measure(logits, rounded, kept)
    if not stored_exactly(checkpoint, weights):
        quantisation = measure(run("reference, original weights", Reference(checkpoint)), logits, kept)
    return References(kept, logits, floor, floor_bf16, quantisation)


def stored_exactly(checkpoint: Checkpoint, weights: str) -> bool:
    """Whether every float of the checkpoint is kept as it is: float32 holds all others, and each dtype holds itself."""
    dtypes = {info.dtype for info in checkpoint.tensors.values()}
    return (weights in _STORED and dtypes <= {_STORED[weights]}) or (weights == "fp32" and "F64" not in dtypes)


def kept_positions(length: int) -> NDArray[np.int64]:
    """All positions of up to MAX_KEPT tokens; else the first and last 64, 64 around the middle, and an even sample."""
    if length <= MAX_KEPT:
        return np.arange(length)
    middle = length // 2  # N = 2W+3: the window's edge
    parts = [np.arange(64), np.arange(length - 64, length), np.arange(middle - 32, middle + 32)]
    sample = np.linspace(0, length - 1, MAX_KEPT - 192).astype(np.int64)
    return np.unique(np.concatenate([*parts, sample]))
