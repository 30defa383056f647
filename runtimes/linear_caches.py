"""The host's side of a graph that writes caches of static capacity in place: what is where, and what each run is given.

The inputs are those of optimize/static_cache.py and pick_logits.py. Who holds the buffers and runs the graph implements
`execute` and `move`: TensorRT on a GPU, and ONNX Runtime on a CPU where the graph is proven. So both are driven alike.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import SessionError
from alize.nvidia import Limits

__all__ = ["Buffers", "LinearCacheRunner", "cache_names"]


class Buffers(Protocol):
    """Caches [B,K,C,D] of B rows, and the graph that writes them."""

    def execute(self, rows: slice, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """One run on some rows. Returns logits [b,N,V]."""
        ...

    def move(self, row: int, count: int, keep: int) -> None:
        """In every cache of a layer with a window: the row's last `keep` of `count` positions become its first."""
        ...

    def close(self) -> None:
        """Releases them."""
        ...


def cache_names(info: ModelInfo) -> list[tuple[str, int]]:
    """(`{layer}.key` or `.value`, the layer's window), in the graph's order."""
    return [(f"{layer}.{part}", window) for layer, window in enumerate(info.windows) for part in ("key", "value")]


class LinearCacheRunner:
    """A Runner. Row b's tokens are the first `filled[b]` of its buffers; layers with a window have lost `evicted[b]` of them."""

    def __init__(self, buffers: Buffers, info: ModelInfo, limits: Limits, batch: int) -> None:
        self._buffers, self._info, self._limits = buffers, info, limits
        self._mixed = 0 in info.windows and any(info.windows)
        self._filled = np.zeros(batch, np.int64)
        self._evicted = np.zeros(batch, np.int64)

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """See Runner."""
        batch, new = tokens.shape
        self._check(new, lengths)
        if self._fits(new):
            logits = self._run(slice(0, batch), tokens, lengths, positions, keep)
        else:  # the padding of a short row would be written behind its buffer's end
            logits = np.zeros((batch, keep or new, self._info.vocab_size), np.float32)
            for b in np.flatnonzero(lengths):
                row, count = slice(b, b + 1), int(lengths[b])
                kept = min(keep, count)
                part = self._run(row, tokens[row, :count], lengths[row], positions[row], kept)[0]
                logits[b, (keep - kept if keep else 0) : (keep or count)] = part
        self._filled += lengths
        return logits

    def drop_last(self, n: int) -> None:
        """See Runner."""
        self._filled -= n

    def evict(self, keep: int) -> None:
        """See Runner."""
        if not any(self._info.windows):
            return
        cached = self._filled - self._evicted
        for b, count in enumerate(cached.tolist()):
            if count > keep:
                self._buffers.move(b, count, keep)
        forgotten = np.maximum(cached - keep, 0)
        if self._mixed:
            self._evicted += forgotten
        else:
            self._filled -= forgotten

    def cached(self) -> int:
        """See Runner."""
        return int((self._filled - self._evicted).max())

    def reset(self) -> None:
        """See Runner. What the buffers hold is never seen."""
        self._filled[:] = 0
        self._evicted[:] = 0

    def close(self) -> None:
        """See Runner."""
        self._buffers.close()

    def _check(self, new: int, lengths: NDArray[np.int64]) -> None:
        capacity = self._limits.capacity
        if capacity and int((self._filled + lengths).max()) > capacity:
            raise SessionError(
                f"{int((self._filled + lengths).max())} tokens are more than the {capacity} that this engine's caches hold: "
                "reset() the session, or build with a larger --capacity"
            )
        if new > self._limits.chunk:
            raise SessionError(f"a step of {new} tokens is more than the {self._limits.chunk} that this engine takes")

    def _fits(self, new: int) -> bool:
        full, sliding = self._limits.capacity, self._limits.window_capacity
        held = self._filled - self._evicted
        return not (full and int(self._filled.max()) + new > full) and not (sliding and int(held.max()) + new > sliding)

    def _run(
        self, rows: slice, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        new = tokens.shape[1]
        wanted = np.tile(np.arange(keep or new, dtype=np.int64), (len(tokens), 1))
        if keep:  # aligned on the right; what would precede a short row's first token is never read, so any will do
            wanted = np.maximum(wanted + (lengths - keep)[:, None], 0)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.ascontiguousarray(tokens),
            "position_ids": positions[:, None] + np.arange(new, dtype=np.int64),
            "cache_lengths": self._filled[rows].copy(),
            "logits_index": wanted,
        }
        if self._mixed:
            feeds["window_cache_lengths"] = self._filled[rows] - self._evicted[rows]
        logits = self._buffers.execute(rows, feeds)
        if not keep:
            logits[np.arange(new)[None] >= lengths[:, None]] = 0
        return logits
