"""The reference runs of one validation, all over the same tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alize.artifact.pieces import Pieces
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference, ReferenceRun, WeightRule
from alize.models.routing import Routing
from alize.progress import Progress
from alize.validate.bookmarks import PieceBookmark
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
    checkpoint's; None when they are the checkpoint's, bit for bit.   routing: what each token chose (None without experts);
    the floors follow it, so that a near-tie of a router does not raise them, the quantisation does not: there a changed choice
    is part of the loss.   router_floor: float64 [L], the float32 floor of each layer's router logits.
    """

    kept: NDArray[np.int64]
    logits: NDArray[np.float32]
    floor: Figures
    floor_bf16: Figures | None
    quantisation: Figures | None
    routing: Routing | None = None
    router_floor: NDArray[np.float64] | None = None

    def logits_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.logits[np.searchsorted(self.kept, positions)]

    def log_probs(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [n,V], each row's log-softmax."""
        return torch.from_numpy(self.logits_at(positions)).double().log_softmax(-1).float().numpy()


def run_references(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    *,
    weights: str,
    rule: WeightRule | None = None,
    bf16: bool,
    progress: Progress,
    pieces: Pieces | None = None,
) -> References:
    """tokens: int64 [N]. weights: what the artifact stores (fp32, bf16, int4-g128, ...); rule: how they are had, by default
    `as_stored`. pieces: where each run keeps how far it got, and goes on from."""
    kept, rule = kept_positions(len(tokens)), rule or as_stored(weights)

    def run(name: str, reference: Reference, follow: Routing | None = None) -> ReferenceRun:
        progress.stage(name, steps=reference.config.num_layers)
        followed = [] if follow is None else [follow.experts]
        done = 0

        def advance(_: str, count: int, __: int) -> None:
            nonlocal done
            progress.advance(count - done)
            done = count

        return reference.run(
            [tokens],
            positions=[kept],
            progress=advance,
            follow=followed or None,
            bookmark=None if pieces is None else PieceBookmark.of(pieces, name, [tokens, *followed]),
        )

    plain = run("reference", Reference(checkpoint, weights=rule))
    logits, routing = plain.logits[0], plain.routing[0] if plain.routing else None
    other = run("reference, summed otherwise", Reference(checkpoint, weights=rule, summation="split"), routing)
    floor, router_floor = measure(logits, other.logits[0], kept), None
    if routing is not None:
        router_floor = np.abs(routing.logits - other.routing[0].logits).max(axis=(1, 2)).astype(np.float64)
    floor_bf16 = quantisation = None
    if bf16:
        rounded = run("reference in bfloat16", Reference(checkpoint, weights=rule, compute=torch.bfloat16), routing)
        floor_bf16 = measure(logits, rounded.logits[0], kept)
    if not stored_exactly(checkpoint, weights):
        quantisation = measure(run("reference, original weights", Reference(checkpoint)).logits[0], logits, kept)
    return References(kept, logits, floor, floor_bf16, quantisation, routing, router_floor)


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
