"""Linear caches, whoever holds them: row b's tokens are the first places of its row, and a window's layers forget the oldest.

In a model that mixes windows and full attention, layers with a window have lost `evicted[b]` of the `filled[b]` tokens that
the others hold; where every layer has the same window, `filled` counts what is left.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo

__all__ = ["LinearRows", "cache_names"]


def cache_names(info: ModelInfo) -> list[tuple[str, int]]:
    """(`{layer}.key` or `.value`, the layer's window), in the graph's order."""
    return [(f"{layer}.{part}", window) for layer, window in enumerate(info.windows) for part in ("key", "value")]


class LinearRows(ABC):
    """A Runner but for what it runs: the rest says which rows a step takes at once, runs them, and moves what a window keeps."""

    def __init__(self, info: ModelInfo, batch: int) -> None:
        self._info = info
        self._width = info.vocab_size  # of what a run returns
        self._windowed = any(info.windows)
        self._mixed = self._windowed and 0 in info.windows
        self._filled = np.zeros(batch, np.int64)
        self._evicted = np.zeros(batch, np.int64)

    @abstractmethod
    def _make_room(self, new: int, lengths: NDArray[np.int64]) -> None:
        """Before a step of `new` columns, lengths[b] of them tokens of row b. Raises SessionError for more than there is."""

    @abstractmethod
    def _at_once(self, new: int, lengths: NDArray[np.int64]) -> bool:
        """Whether all rows can be run together, padding included."""

    @abstractmethod
    def _run(
        self, rows: slice, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """One run on some rows. Returns logits [b,keep or S,V]."""

    @abstractmethod
    def _move(self, row: int, count: int, keep: int) -> None:
        """In every cache of a layer with a window: the row's last `keep` of `count` positions become its first."""

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """See Runner."""
        batch, new = tokens.shape
        self._make_room(new, lengths)
        if self._at_once(new, lengths):
            logits = self._run(slice(0, batch), tokens, lengths, positions, keep)
        else:
            logits = np.zeros((batch, keep or new, self._width), np.float32)
            for b in np.flatnonzero(lengths).tolist():
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
        if not self._windowed:
            return
        held = self._held()
        for b, count in enumerate(held.tolist()):
            if count > keep:
                self._move(b, count, keep)
        forgotten = np.maximum(held - keep, 0)
        if self._mixed:
            self._evicted += forgotten
        else:
            self._filled -= forgotten

    def cached(self) -> int:
        """See Runner."""
        return int(self._held().max())

    def reset(self) -> None:
        """See Runner. What the buffers hold is never seen."""
        self._filled[:] = 0
        self._evicted[:] = 0

    def _held(self) -> NDArray[np.int64]:
        """[B] positions in layers with a window, or in all where none has one."""
        held: NDArray[np.int64] = self._filled - self._evicted
        return held
