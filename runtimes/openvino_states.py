"""The cache of an OpenVINO infer request: states [B,K,slots,D], key and value of each layer, rows aligned on the right."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cache", "Caches"]


class Cache:
    """The states of some layers: `slots` cached positions, of which the last `filled[b]` are row b's tokens."""

    def __init__(self, states: list[Any], batch: int) -> None:
        self._states = states
        self.filled = np.zeros(batch, np.int64)
        self.slots = 0

    def append(self, new: int, lengths: NDArray[np.int64]) -> None:
        """The engine has appended `new` positions: lengths[b] of row b, and padding behind them."""
        self.filled += lengths
        self.slots += new
        padding = new - lengths
        if padding.any():
            self._align(padding)

    def _align(self, padding: NDArray[np.int64]) -> None:
        """Moves each row right over its padding and drops the slots that are padding in every row."""
        needed = int(self.filled.max())

        def moved(cache: NDArray[Any]) -> NDArray[Any]:
            aligned = np.zeros((*cache.shape[:2], needed, cache.shape[3]), cache.dtype)
            for b, (filled, skip) in enumerate(zip(self.filled.tolist(), padding.tolist(), strict=True)):
                end = cache.shape[2] - skip
                aligned[b, :, needed - filled :] = cache[b, :, end - filled : end]
            return aligned

        self._edit(moved)
        self.slots = needed

    def drop_last(self, n: int) -> None:
        """Every row forgets its last n tokens."""
        self.filled -= n
        self.slots -= n
        self._edit(lambda cache: cache[:, :, : self.slots])

    def keep_last(self, keep: int) -> None:
        """Every row forgets all but its last `keep` tokens."""
        if self.slots > keep:
            self.slots = keep
            self.filled = np.minimum(self.filled, keep)
            self._edit(lambda cache: cache[:, :, cache.shape[2] - keep :])

    def clear(self) -> None:
        """The engine has reset the states."""
        self.filled[:] = 0
        self.slots = 0

    def _edit(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Rewrites keys and values. Exact for f32 and f16 caches, the only ones a configuration names."""
        import openvino

        for state in self._states:
            state.state = openvino.Tensor(np.ascontiguousarray(change(state.state.data)))


class Caches:
    """All layers of a request: those with a window, which forget, and those that see everything, which don't.

    windows: of each layer, 0 = full attention. `attention_mask` is as wide as the `longest` cache, and where there are both
    kinds the graph takes its last columns for the layers with a window. A row that forgot has W-1 slots or more: what it lacks
    of a longer row's slots then counts as tokens there, but lies further back than the window.
    """

    def __init__(self, states: Sequence[Any], windows: Sequence[int], batch: int) -> None:
        kinds: dict[bool, list[Any]] = {}
        for state in states:
            kinds.setdefault(windows[_layer(state.name)] > 0, []).append(state)
        caches = {windowed: Cache(some, batch) for windowed, some in kinds.items()}
        self._all = tuple(caches.values())
        self._windowed = caches.get(True)
        self.longest = caches.get(False) or caches[True]

    def append(self, new: int, lengths: NDArray[np.int64]) -> None:
        for cache in self._all:
            cache.append(new, lengths)

    def drop_last(self, n: int) -> None:
        for cache in self._all:
            cache.drop_last(n)

    def evict(self, keep: int) -> None:
        if self._windowed is not None:
            self._windowed.keep_last(keep)

    def cached(self) -> int:
        return int((self._windowed or self.longest).filled.max())

    def clear(self) -> None:
        for cache in self._all:
            cache.clear()


def _layer(name: str) -> int:
    """Of a state's name, which the lowering made: past_key_values.{i}.keypresent.{i}.key"""
    return int(name.split(".")[1])
