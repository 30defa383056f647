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
from alize.runtimes.linear_rows import LinearRows

__all__ = ["Buffers", "LinearCacheRunner"]


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


class LinearCacheRunner(LinearRows):
    """A Runner over buffers of static capacity."""

    def __init__(self, buffers: Buffers, info: ModelInfo, limits: Limits, batch: int) -> None:
        super().__init__(info, batch)
        self._buffers, self._limits = buffers, limits

    def close(self) -> None:
        """See Runner."""
        self._buffers.close()

    def _move(self, row: int, count: int, keep: int) -> None:
        self._buffers.move(row, count, keep)

    def _make_room(self, new: int, lengths: NDArray[np.int64]) -> None:
        capacity = self._limits.capacity
        if capacity and int((self._filled + lengths).max()) > capacity:
            raise SessionError(
                f"{int((self._filled + lengths).max())} tokens are more than the {capacity} that this engine's caches hold: "
                "reset() the session, or build with a larger --capacity"
            )
        if new > self._limits.chunk:
            raise SessionError(f"a step of {new} tokens is more than the {self._limits.chunk} that this engine takes")

    def _at_once(self, new: int, lengths: NDArray[np.int64]) -> bool:  # noqa: ARG002 - padding is what may not fit
        """Unless the padding of a short row would be written behind its buffer's end."""
        full, sliding = self._limits.capacity, self._limits.window_capacity
        return not (full and int(self._filled.max()) + new > full) and not (sliding and self.cached() + new > sliding)

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
            feeds["window_cache_lengths"] = self._held()[rows]
        logits = self._buffers.execute(rows, feeds)
        if not keep:
            logits[np.arange(new)[None] >= lengths[:, None]] = 0
        return logits
